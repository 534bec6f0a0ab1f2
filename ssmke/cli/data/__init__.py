"""`ssmke data`: make, import, verify and look at datasets; one module a command.

Each command ends with one table of what is there now, and the command for the next step. What costs time to
import is imported by the command that needs it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from tyro.extras import SubcommandApp

from ssmke.cli.data import get, imports, leaks, make, reshard, show, stats, verify
from ssmke.cli.data.terminal import console

STOPPED = 130  # as shells report a command that Ctrl-C ended

app = SubcommandApp()
_make = SubcommandApp()
_import = SubcommandApp()
app.command(_make, name="make", help="Make a dataset.")
_make.command(name="scenes")(make.make_scenes)
app.command(_import, name="import", help="Turn files on disk into a dataset; never needs the network.")
for _name, _command in (
    ("coco-captions", imports.import_coco_captions),
    ("flickr30k", imports.import_flickr30k),
    ("flickr8k", imports.import_flickr8k),
    ("karpathy", imports.import_karpathy),
    ("cc3m", imports.import_cc3m),
    ("cc12m", imports.import_cc12m),
    ("sbu", imports.import_sbu),
    ("tars", imports.import_tars),
):
    _import.command(name=_name)(_command)
_get = SubcommandApp()
app.command(_get, name="get", help="Fetch a public dataset, or the images of a list of links, and import it.")
get.register(_get)
app.command(name="stats")(stats.stats)
app.command(name="leaks")(leaks.leaks)
app.command(name="reshard")(reshard.reshard)
app.command(name="verify")(verify.verify)
app.command(name="show")(show.show)


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke data ARGV``; gives the exit code (1: `verify` found problems, 130: stopped).

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        # A job scheduler's SIGTERM then ends workers and removes half-written files as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        code: int = app.cli(args=list(argv), prog="ssmke data", description="Datasets of image-text shards.")
        return code
    except KeyboardInterrupt:
        console().print("stopped; what is finished is kept, and the same command goes on from there.")
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
