"""Get an instance of a pydantic class instead of text.

    pip install pydantic
    python examples/schema.py [MODEL]
"""

import sys
from typing import Literal

import pydantic

import brise


class Ticket(pydantic.BaseModel, extra="forbid"):
    """What a support desk wants to know of a message."""

    team: Literal["billing", "shipping", "technical"]
    urgent: bool


with brise.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2") as model:
    for message in ("I was charged twice for one order!", "Where is my parcel?"):
        answer = model.chat(message, system="Sort the customer's message.", schema=Ticket, temperature=0)
        ticket = answer.value  # a Ticket, for the type checker too
        print(f"{message} -> team {ticket.team}, {'urgent' if ticket.urgent else 'not urgent'}")
