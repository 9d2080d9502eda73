"""Finds the client that a command is about."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.clients.registry import Client, load_client
from gatehouse.authserver.db.models import ClientRow


def existing_client(session: Session, client_id: str) -> Client:
    """Return a client as it stands in this transaction. Raises Refused when there is none."""
    if not client_id:
        raise Refused("The client_id is empty. List the clients with: authserver client list")
    session.flush()
    client = load_client(session, client_id)
    if client is None:
        raise Refused(f"There is no client {client_id}. List them with: authserver client list")
    return client


def locked_client(session: Session, client_id: str) -> Client:
    """Return a client that no other command changes before this transaction ends. Raises Refused.

    On SQLite the transaction has the one write lock since it began, and the clause is left out. Who locks a resource,
    too, locks it before, so that two commands cannot wait for each other.
    """
    session.execute(select(ClientRow.client_id).where(ClientRow.client_id == client_id).with_for_update())
    return existing_client(session, client_id)
