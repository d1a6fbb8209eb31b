"""The screen of `gateway top`: transfers under way and upstreams, once a second. Needs the extra `top`.

key            does
-------------  -------------------------------------
up, down       choose a transfer
c, then y      cancel it
s              sort by age, rate, bytes, waiting time
r              one route after the other, then all
q, Ctrl-C      leave
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from gateway.top.client import OpsClient, OpsError, Row
from gateway.top.rows import HEADINGS, LEGEND, Order, show_summary, show_transfer, show_upstream, sort_transfers

_INTERVAL_SECONDS: Final = 1.0


class Confirmation(ModalScreen[bool]):
    """Asks whether to cancel a transfer; returns whether the answer was y."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes, cancel it"),
        Binding("n,escape", "dismiss(False)", "no"),
    ]
    DEFAULT_CSS = """
    Confirmation { align: center middle; }
    Confirmation > Static { width: auto; max-width: 90%; padding: 1 2; border: round $error; background: $surface; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the question."""
        yield Static(Text(self._question))
        yield Footer()


class TopApp(App[None]):
    """The application. `client` must be open for as long as it runs."""

    TITLE = "gateway top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "cancel", "cancel transfer"),
        Binding("s", "sort", "sort"),
        Binding("r", "route", "route"),
        Binding("q,ctrl+c", "quit", "quit", priority=True, key_display="q"),
    ]
    DEFAULT_CSS = """
    #summary { padding: 0 1; text-style: bold; }
    #legend { padding: 0 1; color: $text-muted; }
    #upstreams { padding: 0 1; height: auto; max-height: 30%; color: $text-muted; }
    DataTable { height: 1fr; }
    """

    def __init__(self, client: OpsClient) -> None:
        super().__init__()
        self._client = client
        #: The last one; None before the first.
        self._snapshot: Row | None = None
        self._order = Order.AGE
        #: The route that is shown, None for all.
        self._route: str | None = None

    def compose(self) -> ComposeResult:
        """Lay out: summary, upstreams, transfers, keys."""
        with Vertical():
            yield Static("reading ...", id="summary")
            yield Static("", id="upstreams")
            yield DataTable[Text](id="transfers", cursor_type="row", zebra_stripes=True)
            yield Static(LEGEND, id="legend")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self._table.add_columns(*HEADINGS)
        self._table.focus()
        self.refresh_rows()
        self.set_interval(_INTERVAL_SECONDS, self.refresh_rows)

    @property
    def _transfers(self) -> list[Row]:
        return self._snapshot["transfers"] if self._snapshot is not None else []

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#transfers", DataTable)

    # A read that takes longer than the interval is replaced by the next only once it has ended.
    @work(group="read")
    async def refresh_rows(self) -> None:
        """Read, and show what was read; where that fails, show why and keep the rows."""
        if len([worker for worker in self.workers if worker.group == "read" and worker.is_running]) > 1:
            return
        try:
            self._snapshot = await self._client.snapshot()
        except OpsError as error:
            self._summary(Text(f"NOT CURRENT: {error}", "red"))
        else:
            self._show()

    def action_sort(self) -> None:
        """Sort by the next order."""
        orders = list(Order)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        self._show()

    def action_route(self) -> None:
        """Show the next route that has transfers; all after the last."""
        names: list[str | None] = [None, *sorted({row["route"] for row in self._transfers if row["route"]})]
        index = names.index(self._route) if self._route in names else 0
        self._route = names[(index + 1) % len(names)]
        self._show()

    def action_cancel(self) -> None:
        """Ask, then cancel the chosen transfer."""
        table = self._table
        if not table.row_count:
            return
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        row = next((row for row in self._transfers if row["id"] == key), None)
        if row is not None:
            cells = show_transfer(row)
            question = (
                f"Cancel {cells[2]} of {cells[1]} on route {cells[0]}, {cells[3]}?\n\ny: cancel it    n: let it run"
            )
            self._ask_and_cancel(row["id"], question)

    @work(group="cancel")
    async def _ask_and_cancel(self, transfer_id: str, question: str) -> None:
        if not await self.push_screen_wait(Confirmation(question)):
            return
        try:
            was_there = await self._client.cancel(transfer_id)
        except OpsError as error:
            self.notify(str(error), severity="error")
            return
        self.notify("cancelled" if was_there else "it had ended before")
        self.refresh_rows()

    def _show(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        text = Text(show_summary(snapshot))
        text.highlight_regex("(?m)^error: .*$", "red")
        text.highlight_regex("(?m)^warning: .*$", "yellow")
        self._summary(text)
        self.query_one("#upstreams", Static).update(Text("\n".join(map(show_upstream, snapshot["upstreams"]))))
        self._replace_rows(sort_transfers(snapshot["transfers"], self._order, self._route))
        scope = f"route {self._route}" if self._route is not None else "all routes"
        hidden = snapshot["transfers_total"] - len(snapshot["transfers"])
        more = f", {hidden} younger ones not shown" if hidden else ""
        self.query_one("#legend", Static).update(f"{scope}, by {self._order.name.lower()}{more}; {LEGEND}")

    def _summary(self, text: Text) -> None:
        self.query_one("#summary", Static).update(text)

    def _replace_rows(self, chosen: Sequence[Row]) -> None:
        """Show these rows; the chosen transfer stays chosen."""
        table = self._table
        before = None
        if table.row_count:
            before = table.coordinate_to_cell_key(table.cursor_coordinate).row_key
        offset = table.scroll_offset
        table.clear()
        for row in chosen:
            table.add_row(*map(Text, show_transfer(row)), key=row["id"])
        if before is not None and before in table.rows:
            table.move_cursor(row=table.get_row_index(before), scroll=False)
        table.scroll_to(offset.x, offset.y, animate=False)
