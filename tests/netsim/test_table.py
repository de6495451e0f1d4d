"""The committed table is what the stack reaches today."""

from tests.netsim.table import DOCUMENT, document


def test_committed_table_is_up_to_date() -> None:
    assert document() == DOCUMENT.read_text(), (
        "python -m tests.netsim --write renews docs/netsim.md; look at what changed"
    )
