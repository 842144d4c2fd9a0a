"""The fork server imports torchrec too, which takes seconds in each rank."""

from tests.forks import PRELOAD, SERVER

SERVER.set_forkserver_preload([*PRELOAD, "torchrec"])
