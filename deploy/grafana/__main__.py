"""Write the dashboards as JSON beside this file: `python -m deploy.grafana` (`make docs`). A test compares them.

What is tested: each file is what this code writes and passes the types of Grafana's SDK for 11.6; every query uses
metrics that exist, and returns data from a real Prometheus that scrapes a gateway with traffic. The files were once
checked by hand against the TypeScript types of @grafana/schema 11.6.0. What is not: no Grafana has rendered them.
Colors, legends and the space that a panel needs are as the documentation of the schema describes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import overview_page, process_page, route_page, transfers_page, upstream_page

FOLDER: Final = Path(__file__).parent
PAGES: Final = {
    "overview": overview_page.PAGE,
    "route": route_page.PAGE,
    "upstream": upstream_page.PAGE,
    "transfers": transfers_page.PAGE,
    "process": process_page.PAGE,
}


def render(name: str) -> str:
    """Return the JSON of one dashboard."""
    return JSONEncoder(sort_keys=True, indent=2).encode(PAGES[name]) + "\n"


def main() -> int:
    """Write every dashboard."""
    for name in PAGES:
        (FOLDER / f"{name}.json").write_text(render(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
