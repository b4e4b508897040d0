"""A fresh process for each build.

A build that fails can leave something behind in TensorRT: after one for SM75 the next in the same process takes the
plan of Turing, whatever it is for. And a process can be killed: so Ctrl-C ends a builder that is deep in its work.
The process reads the graph and writes the engine itself: both are hundreds of megabytes.
"""

from dataclasses import asdict
from pathlib import Path

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import BuildError
from netvlad_deploy.support.children import Channel, Child
from netvlad_deploy.support.records import from_record
from netvlad_deploy.tensorrt.builder import BuildRequest, Built, build_here


def build_apart(request: BuildRequest) -> Built:
    """Build in a fresh process.

    Raises: what `build_here` raises; BuildError if the process dies.
    """
    record = asdict(request)
    paths = {"source": request.source.path, "target": record.pop("target"), "timing_cache": record.pop("timing_cache")}
    del record["source"]["path"]
    message = {
        "source": record.pop("source"),
        "paths": {name: path and str(path.absolute()) for name, path in paths.items()},
        "rest": record,
    }
    with Child(__name__, "the process of the builder", failure=BuildError) as child:
        child.send(message)
        answer, _ = child.receive()
    return from_record(Built, answer)


def serve(channel: Channel) -> None:
    """Be the fresh process: build what the first message asks for."""
    message, _ = channel.receive()
    paths = {name: path and Path(path) for name, path in message["paths"].items()}
    source = from_record(OnnxArtifact, message["source"], path=paths.pop("source"))
    channel.send(asdict(build_here(from_record(BuildRequest, message["rest"], source=source, **paths))))
