"""A fresh process for each build.

A build that fails can leave something behind in TensorRT: after one for SM75 the next in the same process takes the
plan of Turing, whatever it is for. And a process can be killed: so Ctrl-C ends a builder that is deep in its work.
"""

from dataclasses import asdict, replace
from pathlib import Path

from netvlad_deploy.artifact import Gpu
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.children import Channel, Child
from netvlad_deploy.errors import BuildError
from netvlad_deploy.export.builder import BuildRequest, Built, build_here
from netvlad_deploy.runtime.trt_api import LogLine


def build_apart(request: BuildRequest) -> Built:
    """Build in a fresh process.

    Raises: what `build_here` raises; BuildError if the process dies.
    """
    record = asdict(replace(request, content=b"", options=replace(request.options, profiles=())))
    record |= {"content": "", "timing_cache": request.timing_cache and str(request.timing_cache)}
    with Child(__name__, "the process of the builder", failure=BuildError) as child:
        child.send(record, request.content)
        answer, content = child.receive()
    return Built(
        **answer
        | {
            "content": content,
            "gpu": answer["gpu"] and Gpu(**answer["gpu"]),
            "flags": tuple(answer["flags"]),
            "targets": tuple(answer["targets"]),
            "lines": tuple(LogLine(**line) for line in answer["lines"]),
        }
    )


def serve(channel: Channel) -> None:
    """Be the fresh process: build what the first message asks for."""
    record, content = channel.receive()
    options = record["options"]
    request = BuildRequest(
        **record
        | {
            "content": content,
            "options": BuildOptions(**options | {"compute_capabilities": tuple(options["compute_capabilities"])}),
            "profiles": tuple((text, shapes) for text, shapes in record["profiles"]),
            "timing_cache": record["timing_cache"] and Path(record["timing_cache"]),
        }
    )
    answer = asdict(build_here(request))
    channel.send(answer, answer.pop("content"))
