"""The hosts of a run: joined once at the start, they say to one another where they are."""

import jax
from jax._src import distributed

# Of the notes in the coordinator's store: JAX has one, and no public way to it.
_FOLDER = "gsg_jax/notes"


def is_writer() -> bool:
    """Whether this host writes what is written once: logs, records, the last line."""
    return jax.process_index() == 0


def leave_note(text: str) -> None:
    """Tells the other hosts what this one does, in place of what it told before."""
    if client := distributed.global_state.client:
        client.key_value_set(f"{_FOLDER}/{jax.process_index()}", text, allow_overwrite=True)


def notes() -> dict[int, str]:
    """What the hosts have told last, {host: text}; {} where there is only one."""
    client = distributed.global_state.client
    if not client:
        return {}
    return {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(_FOLDER)}
