"""The work of a child process in tests: a message of each level."""

import logging

from netvlad_deploy.support.children import Channel


def serve(channel: Channel) -> None:
    channel.receive()
    log = logging.getLogger("netvlad_deploy.talker")
    for level in ("debug", "info", "warning"):
        getattr(log, level)(level)
    channel.send({})
