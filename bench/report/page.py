"""The page itself, as HTML with everything inside, and as Markdown."""

from typing import Any

import jinja2

from bench.report import plots, tables

_HTML = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Troncal: figures of this machine</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #1f2328; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #d0d7de; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.goals td, .goals th { text-align: left; }
.yes { color: #1a7f37; } .no { color: #cf222e; } .note { color: #59636e; max-width: 60rem; }
code, pre { font: 13px ui-monospace, monospace; background: #f6f8fa; border-radius: 4px; }
code { padding: .1rem .3rem; } pre { padding: .6rem .8rem; overflow-x: auto; margin: .5rem 0; }
.wide { overflow-x: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { width: 33rem; max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>Troncal: figures of this machine</h1>
<p>{{ machine.cpu }}, {{ machine.cpus }} CPUs, {{ machine.system }}, Python {{ machine.python }}.
{{ machine.date }}, {{ took_s }} s. Client and servers share these CPUs. Data in {{ machine.data }}.
</p>
<p class="note">Load of the machine over 1, 5 and 15 minutes: {{ machine.load_before | join(", ") }}
before, {{ machine.load_after | join(", ") }} after. Before, it should be near 0: figures of a busy
machine are none.</p>
<table class="goals">
<tr><th>what</th><th>here</th><th>beside it, same run</th><th>wanted</th><th></th></tr>
{%- for f in figures %}
<tr><td>{{ f.what }}</td><td><strong>{{ f.value }}</strong></td><td>{{ f.beside }}</td>
<td>{{ f.goal }}</td>
<td>{% if f.reached is not none %}{% if f.reached %}<span class="yes">reached</span>
{%- else %}<span class="no">missed</span>{% endif %}{% endif %}</td></tr>
{%- endfor %}
</table>
{%- for name, reason in failed.items() %}
<p class="no">{{ name }} could not be measured: {{ reason }}</p>
{%- endfor %}
{%- for t in tables %}
<h2 id="{{ t.name }}">{{ t.heading }}</h2>
<p class="note">{{ t.note }}</p>
<pre>{{ t.commands | join("\\n") }}</pre>
<div class="wide"><table>
<tr>{% for c in t.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{%- for row in t.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</table></div>
{%- if drawn[t.name] %}
<div class="plots">{% for svg in drawn[t.name] %}{{ svg | safe }}{% endfor %}</div>
{%- endif %}
{%- endfor %}
{%- if no_plots %}
<p class="note">{{ no_plots }}</p>
{%- endif %}
</body>
</html>
"""

_MARKDOWN = """\
# Figures of this machine

{{ machine.cpu }}, {{ machine.cpus }} CPUs, {{ machine.system }}, Python {{ machine.python }}.
{{ machine.date }}, {{ took_s }} s. Client and servers share these CPUs. Data in {{ machine.data }}.
Load over 1, 5 and 15 minutes: {{ machine.load_before | join(", ") }} before,
{{ machine.load_after | join(", ") }} after; figures of a busy machine are none.

| what | here | beside it, same run | wanted | |
|---|---|---|---|---|
{%- for f in figures %}
| {{ f.what }} | **{{ f.value }}** | {{ f.beside }} | {{ f.goal }} | {% if f.reached is not none -%}
{{ "reached" if f.reached else "missed" }}{% endif %} |
{%- endfor %}
{% for name, reason in failed.items() %}
{{ name }} could not be measured: {{ reason }}
{% endfor -%}
{% for t in tables %}
## {{ t.heading }}

{{ t.note }}

{% for c in t.commands %}    {{ c }}
{% endfor %}
| {{ t.columns | join(" | ") }} |
|{% for c in t.columns %}---|{% endfor %}
{%- for row in t.rows %}
| {{ row | join(" | ") }} |
{%- endfor %}
{% endfor %}"""


def render(results: dict[str, Any]) -> tuple[str, str]:
    """The page of some results as HTML and as Markdown; without matplotlib it has no plots."""
    no_plots = ""
    drawn: dict[str, list[str]] = {}
    try:
        drawn = plots.plots(results)
    except plots.NoPlots as error:
        no_plots = str(error)
    values = {
        **results,
        "figures": tables.figures(results),
        "tables": tables.tables(results),
        "drawn": drawn,
        "no_plots": no_plots,
    }
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    page = jinja2.Environment(autoescape=True, **options).from_string(_HTML)
    text = jinja2.Environment(autoescape=False, **options).from_string(_MARKDOWN)
    return page.render({**values, "drawn": _Drawn(drawn)}), text.render(values).strip() + "\n"


class _Drawn(dict[str, list[str]]):
    """Plots by part; none for a part that has none."""

    def __missing__(self, name: str) -> list[str]:
        return []
