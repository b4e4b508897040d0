"""Run by the Python of the Triton environment: a client of its own, told on standard input what to ask.

A line of JSON is a request, and so is its answer. NumPy arrays travel as raw bytes in base64: the two Pythons have
NumPy of different versions.
"""

import base64
import json
import sys
import threading
import time
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient import grpc, http
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

PROTOCOLS = {"grpc": grpc, "http": http}


def array_of(said: dict[str, Any]) -> Any:
    if said["datatype"] == "BYTES":
        values = [base64.b64decode(value) for value in said["data"]]
        return np.array(values, dtype=np.object_).reshape(said["shape"])
    return np.frombuffer(base64.b64decode(said["data"]), said["dtype"]).reshape(said["shape"])


def inputs_of(module: Any, said: list[dict[str, Any]]) -> list[Any]:
    inputs = []
    for each in said:
        one = module.InferInput(each["name"], each["shape"], each["datatype"])
        one.set_data_from_numpy(array_of(each))
        inputs.append(one)
    return inputs


def infer(said: dict[str, Any]) -> dict[str, Any]:
    module = PROTOCOLS[said["protocol"]]
    with module.InferenceServerClient(said["address"]) as client:
        try:
            result = client.infer(said["model"], inputs_of(module, said["inputs"]))
        except InferenceServerException as error:
            return {"error": str(error)}
        values = result.as_numpy("descriptor")
    return {"shape": values.shape, "data": base64.b64encode(values.tobytes()).decode()}


def load(said: dict[str, Any]) -> dict[str, Any]:
    """Ask with several clients at once for some seconds, or for some rounds.

    Each client has one of the inputs and its expected values, of which none means that it must be refused.
    """
    module = PROTOCOLS[said["protocol"]]
    ends, rounds = time.monotonic() + said.get("seconds", 1e9), said.get("rounds", 10**9)
    expected = [np.frombuffer(base64.b64decode(each), np.float32) for each in said["expected"]]
    errors: list[str] = []
    refused: list[str] = []
    times: list[float] = []
    worst = [0.0]

    def ask(number: int) -> None:
        inputs = inputs_of(module, said["inputs"][number % len(said["inputs"])])
        right = expected[number % len(expected)]
        with module.InferenceServerClient(said["address"]) as client:
            done = 0
            while done < rounds and time.monotonic() < ends:
                done += 1
                started = time.perf_counter()
                try:
                    found = client.infer(said["model"], inputs).as_numpy("descriptor")
                except InferenceServerException as error:
                    (errors if right.size else refused).append(str(error))
                    continue
                times.append(time.perf_counter() - started)
                if right.size:
                    worst[0] = max(worst[0], float(np.abs(found.ravel() - right).max()))
                else:
                    errors.append("it was not refused")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(said["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"errors": errors[:20], "refused": len(refused), "worst": worst[0], "times": times}


def config(said: dict[str, Any]) -> dict[str, Any]:
    try:
        parsed = text_format.Parse(said["text"], model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        return {"error": str(error)}
    return dict(json_format.MessageToDict(parsed, preserving_proto_field_name=True))


def call(said: dict[str, Any]) -> dict[str, Any]:
    """Call a method of the client, such as `is_server_ready`."""
    module = PROTOCOLS[said["protocol"]]
    with module.InferenceServerClient(said["address"]) as client:
        try:
            return {"answer": getattr(client, said["method"])(*said.get("arguments", ()))}
        except InferenceServerException as error:
            return {"error": str(error)}


def main() -> None:
    kinds = {"infer": infer, "load": load, "config": config, "call": call}
    for line in sys.stdin:
        said = json.loads(line)
        sys.stdout.write(json.dumps(kinds[said["kind"]](said)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
