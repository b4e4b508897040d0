"""Random heads of every convention, right and with planted faults.

    python -m tools.random_heads [COUNT [SEED [FIRST]]]

Each head is exported in FP32, FP16 and FP16 with wide logits, and judged as `validate` judges it. Then the same file is
judged beside the parameters of another head, which makes it a wrong file. Printed are counts, and every verdict that is
not as it must be; exit 1 if there is one.

- A right file is never FAIL. The export refuses heads that FP32 cannot compute, which is counted.
- A wrong file is never PASS where the fault moves some part of the descriptor of a case that passes, or some value of a
  projected one, by more than twice the tolerance.
- Without a projection it is never PASS where clusters changed places, or centroids their sign, and that moves some part
  of the descriptor by the length of the longest part or more, in any case that can be made. Two clusters are expected
  to be 1.4 lengths apart, and a length is 1 / sqrt(K) of the descriptor where all clusters have one.
- How far other faults move what passes is printed.
- The oracle in float64 is right: 80-bit numbers give the same to a tenth of the tolerance.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD, initialize
from netvlad_deploy.oracle.equations import ReferenceParameters, aggregate, by_cluster
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case, default_cases
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.parity.localise import cluster_errors
from netvlad_deploy.parity.visibility import CERTAIN, SHORT
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.runtime.strict_runner import StrictRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import (
    ADD,
    BATCH_NORM,
    BIAS,
    DESCRIPTOR,
    FLATTENINGS,
    NORM_FLOORS,
    RESIDUAL_SUM,
    NetVLADSpec,
    Projection,
)
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array
from tools.head_faults import FAULTS, PLANTED
from tools.reweighted import reweighted

PRECISIONS = (GraphOptions(), GraphOptions(precision="fp16"), GraphOptions(precision="fp16", wide_logits=True))
DRAWS = 10
"""Heads of each random shape: exporting a shape takes longer than all else."""

EXPONENTS = (-42.0, 20.0)
LARGEST_LAYER, LARGEST_CASE = 2**16, 2**20
LARGEST_EVERY = 100
"""One head of so many has the most clusters and the longest features there are, K=256 and D=4096."""

VISIBLE = 1.0
"""Lengths of the longest part by which a fault must move a part to be one that no PASS may hide."""


def random_spec(random: np.random.Generator, *, largest: bool = False) -> NetVLADSpec:
    """Return K from 1 to 256, D from 1 to 4096 and G from 0 to 8, of any convention; the largest has no projection."""
    while True:
        clusters, width = (int(np.exp(random.uniform(0, np.log(most + 1)))) for most in (256, 4096))
        if largest:
            clusters, width = 256, 4096
        if largest or clusters * width <= LARGEST_LAYER:
            break
    assignment = random.choice(["batch_norm", "assignment_bias", ""])
    projection = None
    if random.random() < 0.3 and not largest:
        offset = random.choice(["bias", "batch_norm", ""])
        gating = (None, BIAS, BATCH_NORM)[int(random.integers(3))]
        projection = Projection(
            size=int(random.integers(1, 33)),
            bias=offset == "bias",
            batch_norm=offset == "batch_norm",
            l2=bool(random.random() < 0.6),
            gating=gating,
            final_l2=gating is not None and bool(random.random() < 0.3),
        )
    return NetVLADSpec(
        num_clusters=clusters,
        feature_size=width,
        num_ghost_clusters=int(random.integers(0, 9)),
        batch_norm=assignment == "batch_norm",
        assignment_bias=assignment == "assignment_bias",
        normalize_input=bool(random.random() < 0.4),
        flatten=FLATTENINGS[int(random.integers(2))],
        epsilon=list(NORM_FLOORS)[int(random.integers(3))],
        projection=projection,
    )


def random_module(spec: NetVLADSpec, random: np.random.Generator, far: float = 0.25) -> NetVLAD:
    """Return a layer whose weights are those of a vocabulary or untrained, each tensor perhaps scaled far away."""
    module = initialize(spec, int(random.integers(2**31)))
    columns, width = spec.num_clusters + spec.num_ghost_clusters, spec.feature_size
    if random.random() < 0.5:
        centres = random.standard_normal((columns, width))
        centres *= 0.9 / np.linalg.norm(centres, axis=1, keepdims=True)
        module.clusters.data = torch.tensor(2 * random.choice([1, 10, 50, 164]) * centres.T).float()
        module.clusters2.data = torch.tensor(centres[: spec.num_clusters].T[None]).float()
    for name, tensor in module.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor += torch.tensor(random.standard_normal(tensor.shape)).float()
        if name.endswith("running_var"):
            tensor.copy_(torch.tensor(10 ** random.uniform(-3, 1, tensor.shape)).float())
        if tensor.is_floating_point() and random.random() < far:
            scaled = tensor.double() * 10 ** random.uniform(*EXPONENTS)
            tensor.copy_(scaled.clamp(-3e38, 3e38))
    return module.eval()


def open_untapped(artifact: OnnxArtifact, options: GraphOptions) -> Runner:
    """Return the runner of `validate`, which shows nothing inside: where a failure departs is of no interest here."""
    runner = (StrictRunner if options.half else OnnxRuntimeRunner)(artifact, threads=1)
    setattr(runner, "tapped", lambda: runner)  # noqa: B010
    return runner


def cases_of(parameters: ReferenceParameters, runner: Runner) -> Iterator[Case]:
    spec = parameters.spec
    rows = max(4, min(100, LARGEST_CASE // (spec.num_clusters * spec.feature_size)))
    most = 4 if spec.num_clusters * spec.feature_size <= LARGEST_LAYER else 2
    shapes = Profile(batch=AxisRange(min=1, opt=2, max=most), num_features=AxisRange(min=1, opt=rows, max=2 * rows))
    return default_cases(parameters, shapes=shapes, largest=runner.largest_feature if runner.half else None)


@dataclass
class Tally:
    """Counts of verdicts, and sentences about those that are wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def right_file(self, report: ParityReport, where: str) -> None:
        self.counts[f"right file, {report.precision}: {report.verdict.value}"] += 1
        self.counts[f"cases, {report.precision}: judged"] += len(report.cases) - report.not_judged
        self.counts[f"cases, {report.precision}: not judged"] += report.not_judged
        if report.verdict is Verdict.FAIL:
            failed = [case.name for case in report.cases if case.verdict is Verdict.FAIL]
            self.wrong.append(f"FAIL of a right file: {where}: {', '.join(failed)}")

    def passed_wrong(self, fault: str, precision: str, share: float, ratio: float, where: str) -> None:
        """Count a wrong file that passed: it moves a part by `share` lengths, what passes by `ratio` tolerances."""
        size = next(size for size in (1e-3, 0.1, 0.5, VISIBLE, np.inf) if share < size)
        self.counts[f"{fault}, {precision}: PASS, moved by less than {size:g} lengths"] += 1
        if ratio > CERTAIN or (share >= VISIBLE and fault in PLANTED and "projection=None" in where):
            moved = f"moves {share:.2g} lengths, {ratio:.2g} tolerances"
            self.wrong.append(f"PASS of a wrong file ({fault}, {moved}): {where}")


def effects(right: ReferenceParameters, wrong: ReferenceParameters, case: Case, precision: str) -> tuple[float, float]:
    """Return the most that a fault moves a descriptor, in lengths of the longest part and in tolerances.

    A projected descriptor has no parts: it counts as a whole, and its length over sqrt(K) as that of a part. Where no
    aggregate is longer than 0.5 there is no part worth the name, and 0 is returned.
    """
    oracle = OracleRunner(wrong)
    feeds = case.feeds(oracle, masked=False)
    expected, got = oracle.run(feeds), OracleRunner(right).run(feeds)
    difference = got[DESCRIPTOR] - expected[DESCRIPTOR]
    errors = cluster_errors(DESCRIPTOR, difference, wrong.spec)
    ratio = errors / tolerances(wrong, feeds, expected, precision)[DESCRIPTOR]
    vectors = aggregate(wrong, expected[RESIDUAL_SUM])
    long = np.linalg.norm(vectors, axis=1) > SHORT
    if not long.any():
        return 0.0, float(ratio.max())
    longest = np.linalg.norm(by_cluster(vectors[long], wrong.spec), axis=-1).max()
    if wrong.projection is not None:
        longest = np.linalg.norm(expected[DESCRIPTOR][long], axis=1).max() / np.sqrt(wrong.spec.num_clusters)
        errors = np.linalg.norm(difference, axis=1, keepdims=True)
    return float(errors[long].max() / max(longest, 1e-300)), float(ratio.max())


def judge_wrong(runner: Runner, wrong: ReferenceParameters) -> tuple[Verdict, list[Case]]:
    """Return the verdict of a file beside the parameters of another head, and the cases that passed before it."""
    cases, passed = list(cases_of(wrong, runner)), []
    for case in cases:
        verdict = compare(runner, wrong, cases=[case]).verdict
        if verdict is Verdict.FAIL:
            return verdict, []
        passed += [case] if verdict is Verdict.PASS else []
    return compare(runner, wrong, cases=cases).verdict, passed


def exact_descriptor(parameters: ReferenceParameters, features: Array) -> Array:
    """Return the aggregate (B,K,D) in 80-bit numbers, straight from the equations."""
    wide = np.longdouble
    floor = wide(NORM_FLOORS[parameters.epsilon])

    def normalized(values: Array) -> Array:
        square = (values * values).sum(axis=-1, keepdims=True)
        below = np.sqrt(square + floor**2) if parameters.epsilon == ADD else np.maximum(np.sqrt(square), floor)
        result: Array = values / below
        return result

    x = features.astype(wide)
    x = normalized(x) if parameters.normalize_input else x
    logits = x @ parameters.clusters.astype(wide)
    if (norm := parameters.batch_norm) is not None:
        logits = (logits - norm.running_mean) / np.sqrt(norm.running_var.astype(wide) + wide(norm.eps))
        logits = logits * norm.weight + norm.bias
    logits = logits if parameters.bias is None else logits + parameters.bias
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True))[..., : parameters.spec.num_clusters]
    total = weights.sum(axis=1)[..., None]
    residuals = weights.swapaxes(1, 2) @ x - total * parameters.centroids
    parts = normalized(residuals)
    flat = normalized(parts.reshape(len(parts), -1))
    return flat.reshape(parts.shape)


def oracle_departs(parameters: ReferenceParameters, case: Case) -> bool:
    """Return True if the oracle is off by more than a tenth of the FP32 tolerance."""
    plain = replace(parameters, projection=None, gating=None)
    oracle = OracleRunner(plain)
    feeds = case.feeds(oracle, masked=False)
    expected = oracle.run(feeds)
    allowed = tolerances(plain, feeds, expected, "fp32")[DESCRIPTOR]
    exact = exact_descriptor(plain, case.features)
    got = cluster_errors(DESCRIPTOR, expected[DESCRIPTOR], plain.spec)
    order = exact if plain.flatten == FLATTENINGS[1] else exact.swapaxes(1, 2)
    errors = cluster_errors(
        DESCRIPTOR, (expected[DESCRIPTOR] - order.reshape(len(exact), -1)).astype(float), plain.spec
    )
    return bool((errors > 0.1 * allowed + 1e-15 * (1 + got)).any())


def judge_head(
    artifact: OnnxArtifact, options: GraphOptions, random: np.random.Generator, tally: Tally, where: str
) -> None:
    """Judge a right file, then the same file as a wrong one."""
    parameters = load_reference(artifact.reference_path)
    with open_untapped(artifact, options) as runner:
        cases = list(cases_of(parameters, runner))
        tally.right_file(compare(runner, parameters, cases=cases), where)
        dtype = np.float16 if options.half else np.float32
        kept = [case for case in cases if not case.doubt(runner.range)]
        if not options.half:
            departed = sum(oracle_departs(parameters, case) for case in kept)
            tally.counts["oracle against 80 bits: cases"] += len(kept)
            tally.wrong += [f"oracle off in {departed} cases: {where}"] if departed else []
        for fault, plant in FAULTS.items():
            wrong = plant(parameters, random)
            if wrong is None:
                continue
            verdict, passed = judge_wrong(runner, wrong)
            tally.counts[f"{fault}, {options.precision_name}: {verdict.value}"] += 1
            if verdict is not Verdict.PASS:
                continue
            kept = [each for each in cases_of(wrong, runner) if not each.rounded(dtype).doubt(runner.range)]
            found = {each.name: effects(parameters, wrong, each.rounded(dtype), runner.precision) for each in kept}
            share, ratio = max(share for share, _ in found.values()), max(found[case.name][1] for case in passed)
            tally.passed_wrong(fault, runner.precision, share, ratio, where)


def run(count: int, seed: int, tally: Tally, say: Callable[[str], None] = lambda line: None, *, first: int = 0) -> None:
    """Judge `count` random heads in every precision, from number `first` on, a multiple of 10."""
    with tempfile.TemporaryDirectory() as name:
        for index in range(first, first + count):
            random = np.random.default_rng((seed, index))
            largest = index % LARGEST_EVERY == LARGEST_EVERY - 1
            if largest or index % DRAWS == 0:
                spec = random_spec(random, largest=largest)
                usual = random_module(spec, random, far=0)
                templates = [
                    export_onnx(usual, Path(name) / f"{options.precision_name}.onnx", options, force=True)
                    for options in PRECISIONS
                ]
            module = random_module(spec, random)
            for template, options in zip(templates, PRECISIONS, strict=True):
                where = f"head {index}, {options.precision_name}, {spec}"
                try:
                    artifact = reweighted(template, module, options)
                except FoldError as error:
                    tally.counts[f"refused by the export: {str(error).split(' ')[0]}"] += 1
                    continue
                before = len(tally.wrong)
                judge_head(artifact, options, random, tally, where)
                for line in tally.wrong[before:]:
                    say(line)
            tally.counts["heads"] += 1
            say(f"head {index}, K={spec.num_clusters} D={spec.feature_size}")


def main() -> None:
    """Print what was found."""
    torch.set_num_threads(1)
    count, seed, first = (int(value) for value in (*sys.argv[1:], *("200", "0", "0")[len(sys.argv) - 1 :]))
    tally = Tally()
    try:
        run(count, seed, tally, lambda line: print(line, flush=True), first=first)
    finally:  # also what was found before an interruption
        for name, number in sorted(tally.counts.items()):
            print(f"{number:6}  {name}")
        print("\n".join(tally.wrong) or "nothing is wrong", flush=True)
    raise SystemExit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
