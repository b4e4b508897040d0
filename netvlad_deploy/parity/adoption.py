"""The head of a foreign file: read as a NetVLAD, and believed only because it computes what the oracle computes."""

from dataclasses import dataclass

import numpy as np

from netvlad_deploy.errors import InputError, ParityError, RunError
from netvlad_deploy.export.foreign.cut import FeatureLayout, cut, layouts
from netvlad_deploy.export.foreign.read import CURE, ForeignModel
from netvlad_deploy.export.foreign.recover import Recovered, projected, recover
from netvlad_deploy.export.foreign.sites import BURST, Site, Start
from netvlad_deploy.parity.cases import Case, profile_cases
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.foreign_runner import ForeignPart, ForeignRunner, bound, shapes_of
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.spec.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class ForeignHead:
    """A NetVLAD in a foreign file.

    Args:
        site: its place.
        start: where it starts, and whether it L2-normalises its input there.
        layout: how local descriptors lie there.
        layer: its parameters as they were recovered.
        runner: the head of the file itself, its projection included, in FP32.
        cases: the inputs on which it was compared.
        proof: its comparison with the oracle on `layer`, which has passed.
        notes: what was left out of the comparison, in sentences.
    """

    site: Site
    start: Start
    layout: FeatureLayout
    layer: Recovered
    runner: Runner
    cases: tuple[Case, ...]
    proof: ParityReport
    notes: tuple[str, ...]


def prove_head(model: ForeignModel, site: Site) -> ForeignHead:
    """Return the NetVLAD at a site of a model, after comparing the file's own head with the oracle.

    Raises: InputError if its parameters cannot be recovered, or the oracle with these gives other descriptors.
    """
    if BURST in site.operators:
        raise InputError(
            f"its NetVLAD {site.name} weighs local descriptors by a {BURST}: burst weighting, as in VLAD-BuFF, is no "
            f"plain NetVLAD; {CURE}"
        )
    failed = []
    for start in site.starts:
        for layout in layouts(model, start.tensor, site.feature_size):
            try:
                return _by(model, site, start, layout)
            except (InputError, ParityError, RunError) as error:
                failed.append(str(error))
    reason = failed[0] if failed else f"no tensor of {site.feature_size} values for each position enters it"
    raise InputError(f"softmax {site.name} looks like that of a NetVLAD, but {reason}; {CURE}")


def _by(model: ForeignModel, site: Site, start: Start, layout: FeatureLayout) -> ForeignHead:
    """Return the NetVLAD at a site by one reading of where it starts.

    Raises: InputError, RunError if it is none by this reading.
    """
    tried, shape = layout, None
    whole = cut(model, start.tensor, site.paths.output)
    if whole.whole is not None and None in layout.positions:
        tried, shape = bound(model, start.tensor, layout)
        whole = cut(model, start.tensor, site.paths.output, shape)
    shapes = shapes_of(tried)
    head = ForeignPart(cut(model, start.tensor, site.aggregate, shape), tried)
    found = recover(site, head, shapes.num_features.min, shapes.batch.max, normalize_input=start.normalize_input)
    layer = projected(site, found)
    runner = ForeignRunner(ForeignPart(whole, tried), layer.spec)
    return _proven(site, start, layout, layer, runner)


def _proven(site: Site, start: Start, layout: FeatureLayout, layer: Recovered, runner: Runner) -> ForeignHead:
    parameters = layer.parameters()
    cases: list[Case] = []
    lost: list[Case] = []
    for case in profile_cases(parameters, runner):
        finite = np.isfinite(runner.run(case.feeds(runner, masked=False))[DESCRIPTOR]).all()
        (cases if finite else lost).append(case)
    if not cases:
        raise InputError("its descriptors are not finite, whatever the features")
    proof = compare(runner, parameters, cases=cases)
    check_passed(proof)
    notes = layer.notes
    if lost:
        names = ", ".join(case.name for case in lost)
        notes += (f"not compared where the file's own descriptors are not finite: {names}",)
    return ForeignHead(
        site=site, start=start, layout=layout, layer=layer, runner=runner, cases=tuple(cases), proof=proof, notes=notes
    )


def check_passed(report: ParityReport) -> None:
    """Refuse an adoption whose comparison has not passed.

    Raises: InputError naming the worst case.
    """
    if report.verdict is Verdict.PASS:
        return
    failed = [(output, case) for case in report.cases for output in case.outputs if output.verdict is Verdict.FAIL]
    if not failed:
        reasons = "; ".join(dict.fromkeys(case.reason for case in report.cases))
        raise InputError(f"no case proves that it is one: {report.unseen or reasons}")
    output, case = max(failed, key=lambda each: each[0].worst_ratio)
    part = "" if output.worst_cluster is None else f" in cluster {output.worst_cluster}"
    raise InputError(
        f"it computes something else: {len(failed)} of {len(report.cases)} cases differ, {case.name!r} by "
        f"{output.worst_error:.1e}{part} where rounding explains {output.tolerance:.1e}"
    )
