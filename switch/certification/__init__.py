"""The certification pack: the 65 cases by which a peer shows that money is right with it.

`network_cases` certifies a network: its terminals' listener is asked as tills ask, and its platform
connects to ours, which mistreats messages as each case wants. `platform_cases` certifies a platform
as a network sees it. `stand` is what cases work with, `report` what comes of them.
"""
