"""Files and reports for other parties: the daily conciliation file, its comparison, statements."""
