"""Self-reconstruction alone and whole detectors: plain, as the authors' release does it, and each head of ours.

pytest benchmarks/bench_detectors.py                                # a small size
pytest benchmarks/bench_detectors.py --large --rounds 5             # those of docs/performance.md too; an hour on a CPU
pytest benchmarks/bench_detectors.py --large -k "800x800 and float32 and training"

Random weights, AI-TOD's classes, frozen stem, first stage and batch norms as in the paper. A training step is a forward
and backward pass of the sum of all losses; what an optimizer takes is the same for all. Peak memory is that of one step
or inference with weights, inputs and gradients: on CUDA what PyTorch allocates; on the CPU what is resident beyond the
empty program, in a process of its own.

That our forms agree with the authors' is checked without TF32; times are those of PyTorch's defaults, with it.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, cast

import bench_dgfe
import pytest
import torch
import torch.nn.functional as F
from measurement import MODEL_VARIANTS, Case, Work, parametrize, resident_bytes, without_tf32
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import Bottleneck

from srtod import ops
from srtod._support.memory import keep_pages
from srtod.models import Detector, SelfReconstruction, SelfReconstructionOutput, build_detector
from srtod.models.reconstruction.paper_head import Up
from srtod.ops import DGFE

keep_pages()  # as in srtod's commands; in the processes whose memory is measured, too

CHANNELS, CLASSES, OBJECTS = 256, 8, 40
HEAD = "self_reconstruction"  # of the difference map and DGFE as well; without a detector around it
OURS = ("paper", "subpixel")
THRESHOLD = 0.25  # about half of the differences between noise and an untrained reconstruction exceed it

SMALL = [
    Case(op, "256x256", 1, "contiguous", "float32", direction)
    for op in (HEAD, "faster_rcnn")
    for direction in ("inference", "training")
]
CASES = [
    *SMALL,
    *(
        Case(op, size, 1, "contiguous", dtype, direction)
        for size, dtype in (("800x800", "float32"), ("800x800", "bfloat16"), ("1088x1920", "float32"))
        for op in (HEAD, "faster_rcnn", "cascade_rcnn")
        for direction in ("inference", "training")
    ),
    *(
        Case(op, size, batch, "channels_last", dtype, direction, "cuda")
        # All of them fit into the nine minutes of scripts/gpu_check.sh's stage; the least used comes last.
        for size, dtype in (("800x800", "bfloat16"), ("1088x1920", "bfloat16"), ("800x800", "float32"))
        for op in (HEAD, "faster_rcnn", "cascade_rcnn")
        for direction, batch in (("inference", 1), ("training", 2))
        if torch.cuda.is_available()
    ),
]


class AuthorsSelfReconstruction(nn.Module):
    """As the authors' release: in place of a `SelfReconstruction`, whose parameters it shares.

    A clone of the level is reconstructed in full, in inference too, layer by layer, in the memory format that it comes
    in. Sigmoid, loss and difference map are passes of their own. The threshold gets no gradient.

    Args:
        ours: with the paper's method, as which its options are set by default.
    """

    def __init__(self, ours: SelfReconstruction) -> None:
        super().__init__()
        self.reconstruction_head = ours.reconstruction_head
        self.dgfe = cast("DGFE", ours.enhancer)

    def forward(
        self,
        features: Tensor,
        image: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        boxes: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, SelfReconstructionOutput]:
        """See `SelfReconstruction`; padding, of which `image_sizes` tells, counts in the loss."""
        x = features.clone()
        *ups, out = self.reconstruction_head
        for up in cast("list[Up]", ups):
            x = up.conv1(up.transpose(x)).relu_()
            x = up.conv2(x).relu_()
        logits = out(x)
        reconstruction = logits.sigmoid()
        loss = F.mse_loss(reconstruction, image)
        difference = (reconstruction - image).abs().mean(dim=1, keepdim=True)
        fc1, fc2 = self.dgfe.fc1, self.dgfe.fc2
        mlp = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        enhanced = bench_dgfe.authors(features, difference, self.dgfe.threshold, *mlp)
        return enhanced, SelfReconstructionOutput(loss, difference, logits)

    def enhance(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """See `SelfReconstruction`."""
        return self(features, image, image_sizes)[0]


def reconstruction_options(variant: str) -> dict[str, Any]:
    """The options of self-reconstruction; those of the authors' form are the paper's."""
    if variant == "subpixel":
        return {"enhancement": "dgfe", "threshold": THRESHOLD, "reconstruction": "subpixel"}
    return {"enhancement": "dgfe", "threshold": THRESHOLD, "reconstruction": "paper", "resize": "nearest"}


class ModelWork(NamedTuple):
    """One step of training, or one inference, and its outcome."""

    work: Work
    observe: Callable[[], tuple[Tensor | None, Tensor]]  # the reconstruction loss in training, and the enhanced level


def random_detector(name: str, **options: Any) -> Detector:
    """A detector with random weights whose cost does not depend on them.

    Of every image all proposals stay, and no detections: how many of either there are would depend on the enhancement.
    """
    torch.manual_seed(0)
    detector = build_detector(
        name,
        CLASSES + 1,
        norm="frozen_batch",
        trainable_layers=3,
        channels=CHANNELS,
        min_size=None,
        max_size=None,
        score_threshold=0.999999,
        **options,
    )
    cast("RegionProposalNetwork", detector.head.rpn).nms_thresh = 1.0
    for module in detector.modules():
        if isinstance(module, Bottleneck):  # frozen norms without statistics let the signal grow from block to block
            nn.init.constant_(module.bn3.weight, 0.2)
    return detector


def random_images(batch: int, size: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise `[3, H, W]` in [0, 1], and objects of 4 to 24 pixels, for `size` "HxW"."""
    height, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(batch):
        images.append(torch.rand((3, height, width), generator=generator))
        corner = torch.rand((OBJECTS, 2), generator=generator) * torch.tensor([width - 24, height - 24])
        side = 4 + 20 * torch.rand((OBJECTS, 2), generator=generator)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + side], dim=1), "labels": labels})
    return images, targets


def detector_work(case: Case, variant: str) -> ModelWork:
    """Steps of training or inferences of the detector that is the case's op."""
    detector = random_detector(
        case.op,
        self_reconstruction=variant != "plain",
        **({} if variant == "plain" else reconstruction_options(variant)),
    )
    if variant == "authors":
        detector.self_reconstruction = cast(
            "SelfReconstruction", AuthorsSelfReconstruction(cast("SelfReconstruction", detector.self_reconstruction))
        )
    detector = detector.to(case.device).to(memory_format=case.memory_format).train(case.needs_grad)
    images, targets = random_images(case.batch, case.size)
    images = [image.to(case.device) for image in images]
    targets = [{name: values.to(case.device) for name, values in target.items()} for target in targets]

    def setup() -> None:
        torch.manual_seed(0)  # of the anchors and proposals that are sampled
        detector.zero_grad()

    def forward() -> dict[str, Tensor]:
        with _autocast(case):
            return detector(images, targets) if case.needs_grad else detector(images)

    def once() -> None:
        if case.needs_grad:
            torch.stack(list(forward().values())).sum().backward()
        else:
            with torch.no_grad():
                forward()

    def observe() -> tuple[Tensor | None, Tensor]:
        levels: list[Tensor] = []
        hook = detector.head.register_forward_pre_hook(
            lambda _, args: levels.append(next(iter(args[1].values())).detach().float())
        )
        setup()
        with hook, torch.set_grad_enabled(case.needs_grad):
            losses = forward()
        return losses["loss_reconstruction"].detach() if case.needs_grad else None, levels[0]

    return ModelWork(Work(setup, once), observe)


def head_work(case: Case, variant: str) -> ModelWork:
    """The same for self-reconstruction alone, on normally distributed features."""
    torch.manual_seed(0)
    ours = SelfReconstruction(CHANNELS, inplace=True, **reconstruction_options(variant))
    module = AuthorsSelfReconstruction(ours) if variant == "authors" else ours
    module = module.to(case.device).to(memory_format=case.memory_format).train(case.needs_grad)
    image = torch.stack(random_images(case.batch, case.size)[0]).to(case.device)
    features, grad = (
        torch.empty(
            (case.batch, CHANNELS, *(-(-side // 4) for side in image.shape[2:])),
            dtype=case.torch_dtype,
            device=case.device,
            memory_format=case.memory_format,
        ).normal_()
        for _ in range(2)
    )

    def setup() -> None:
        torch.manual_seed(0)
        features.requires_grad_(False).normal_().requires_grad_(case.needs_grad)  # inference has overwritten them
        features.grad = None
        module.zero_grad()

    def once() -> None:
        with _autocast(case):
            if case.needs_grad:
                enhanced, output = module(features, image)
                torch.autograd.backward((output.loss, enhanced), (None, grad))
            else:
                with torch.no_grad():
                    module.enhance(features, image)

    def observe() -> tuple[Tensor | None, Tensor]:
        setup()
        with _autocast(case), torch.set_grad_enabled(case.needs_grad):
            if not case.needs_grad:
                return None, module.enhance(features, image).float()
            enhanced, output = module(features, image)
            return output.loss.detach(), enhanced.detach().float()

    return ModelWork(Work(setup, once), observe)


def make_work(case: Case, variant: str) -> ModelWork:
    return head_work(case, variant) if case.op == HEAD else detector_work(case, variant)


def _autocast(case: Case) -> contextlib.AbstractContextManager[Any]:
    """Half precision is autocast, as in training: weights stay in float32."""
    return torch.autocast(case.device, case.torch_dtype, enabled=case.dtype != "float32")


@functools.lru_cache(maxsize=1)
def authors_outcome(case: Case) -> tuple[Tensor | None, Tensor]:
    """Kept for the case's next variant; TF32 is as `check_agreement`, which alone calls this, has set it: off."""
    return make_work(case, "authors").observe()


def check_agreement(case: Case, model: ModelWork) -> None:
    """Loss and enhanced level are those of the authors' form but for rounding.

    Rounding also decides whether a difference next to the threshold exceeds it, which doubles a whole pixel of the
    level or not: of few pixels in float32, of some in half precision, which rounds the logits to 8 bits.
    """
    exact = case.dtype == "float32"
    with without_tf32():
        (loss, enhanced), (expected_loss, expected) = model.observe(), authors_outcome(case)
    if loss is not None:
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5 if exact else 1e-3, atol=0)
    tolerance = (1e-3 if exact else 5e-2) * expected.std()
    differing = ((enhanced - expected).abs() > tolerance + 2e-2 * expected.abs()).any(dim=1).double().mean().item()
    assert differing < (1e-3 if exact else 1e-2), f"{differing:.1%} of the enhanced pixels differ"


def peak_mb(case: Case, variant: str) -> float | None:
    """Memory that building it and one call take."""
    if case.device == "cpu":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torchvision", "srtod.models"])  # and no time to import them
        with ProcessPoolExecutor(1, mp_context=context) as process:
            return process.submit(_resident_mb, case, variant, torch.get_num_threads()).result()
    peak = 0
    for _ in range(2):  # the first call also allocates workspaces, which stay
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work = make_work(case, variant).work
        work.setup()
        work.once()
        peak = torch.cuda.max_memory_allocated() - before
        del work
    return peak / 2**20


def _resident_mb(case: Case, variant: str, threads: int) -> float | None:
    """To be called in a fresh process."""
    torch.set_num_threads(threads)
    before = resident_bytes("VmRSS")
    work = make_work(case, variant).work
    work.setup()
    work.once()
    highest = resident_bytes("VmHWM")
    return None if before is None or highest is None else (highest - before) / 2**20


def variants(case: Case) -> tuple[str, ...]:
    """Without a detector there is no plain one."""
    return MODEL_VARIANTS[1:] if case.op == HEAD else MODEL_VARIANTS


def marks(case: Case) -> Collection[pytest.MarkDecorator]:
    return [pytest.mark.large] if case.device == "cpu" and case not in SMALL else []


@parametrize(CASES, variants, marks)
def test_detectors(case: Case, variant: str, measure_model: Callable[..., None]) -> None:
    if variant in OURS and not ops.is_fused(case.device):
        pytest.skip(f"the compiled ops are not available on {case.device}")
    peak = peak_mb(case, variant)
    model = make_work(case, variant)
    if variant == "paper":
        check_agreement(case, model)
    base = variants(case)[0]
    measure_model(case, variant, model.work, None if variant == base else make_work(case, base).work, peak)
