"""
The close codes that the code knows, and the ones that docs/protocol.md tells clients of.
"""

import re
from pathlib import Path

from dalston.orchestrator.protocol.close_codes import CloseCode

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"
# Never sent, and between worker and gateway only.
NOT_FOR_CLIENTS = {CloseCode.ABNORMAL, CloseCode.SERVICE_RESTART}


def test_every_code_that_a_client_can_meet_is_in_the_table_and_no_other() -> None:
    section = PROTOCOL.read_text("utf-8").split("## Close codes")[1].split("\n## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d{4}) \|", section, re.MULTILINE)}
    assert told == set(CloseCode) - NOT_FOR_CLIENTS
