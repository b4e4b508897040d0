"""Run each build in a fresh process.

A failed build can spoil the next one in its process: after one for SM75, TensorRT-RTX takes the plan of Turing for
every other architecture. And Ctrl-C can kill a process, however deep the builder is in its work. The process reads the
graph and writes the engine itself, since both may be hundreds of megabytes.
"""

from dataclasses import asdict

from netvlad_deploy.errors import BuildError
from netvlad_deploy.support.children import Channel, Child
from netvlad_deploy.support.records import from_record
from netvlad_deploy.tensorrt.builder import BuildRequest, Built, build_here


def build_apart(request: BuildRequest) -> Built:
    """Build in a fresh process.

    Raises: as `build_here`; BuildError if the process dies.
    """
    with Child(__name__, "the process of the builder", failure=BuildError) as child:
        child.send(asdict(request))
        answer, _ = child.receive()
    return from_record(Built, answer)


def serve(channel: Channel) -> None:
    """Do the build that the first message requests, and send back the `Built`; the fresh process does nothing else."""
    message, _ = channel.receive()
    channel.send(asdict(build_here(from_record(BuildRequest, message))))
