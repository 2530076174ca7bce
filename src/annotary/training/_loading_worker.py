"""A process that makes pictures of batches: `python -m annotary.training._loading_worker`.

`_loading_processes` starts it and tells it how through a pipe; the pictures lie in memory that both share.
"""

from __future__ import annotations

import traceback

from annotary.runtime.children import serve
from annotary.training._preparing import Pictures, Shared


def main() -> None:
    """Take a preparation from standard input, then what is wanted, and answer what could not be had."""
    take, tell = serve()
    preparation, layout, handle = take()
    pictures = Pictures(Shared(layout.bytes, handle).memory, layout)
    tell(("ready", None))
    while True:
        slot, first, epoch, wanted = take()
        target = pictures.slots[slot, first : first + len(wanted)]
        try:
            tell(("done", preparation.fill(target, wanted, epoch, pictures)))
        except Exception as error:  # noqa: BLE001 - it is raised again by the one that started us
            tell(("bug", (repr(error), "".join(traceback.format_exception(error)))))


if __name__ == "__main__":
    main()
