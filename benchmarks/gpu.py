"""Time the loss on a GPU against what else there is; correctness first.

    python -m benchmarks.gpu [--batch 1024 65536 ...] [--width 64 128 ...] [--precision bfloat16 float32 tf32]

Every contestant computes the mean InfoNCE of B rows against B columns of unit length, forward and backward: ours with
a temperature per row and its gradient, those that take none with the same number for all. Prints a line a
measurement and writes benchmarks/results/infonce-<card>.json: median seconds by CUDA events, added peak memory, and the
rate as TFLOP/s of four products of 2 B B d, which is what our schedule executes, whatever the contestant does.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast as af
from benchmarks.measure import write
from tests.tolerances import assert_as_accurate

TAU = 0.07
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    return af.adaptive_infonce(a, b, tau)


def eager(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """The literal form: two B x B arrays and their gradients."""
    return F.cross_entropy(a @ b.T / tau[:, None], torch.arange(len(a), device=a.device))


def linear_cross_entropy(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """PyTorch's chunked form. It has no temperature, so a row is scaled beforehand."""
    scaled = (a / tau[:, None]).to(a.dtype)
    target = torch.arange(len(a), device=a.device)
    return F.linear_cross_entropy(scaled, b, target, options=torch.nn.LinearCrossEntropyOptions())


def contestants() -> dict[str, Loss]:
    """Those that this installation has; new ones each time, so that torch.compile sees one shape."""
    torch._dynamo.reset()
    found = {"adaftr_fast": ours, "eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since torch 2.13
        found["linear_cross_entropy, chunked"] = linear_cross_entropy
    try:
        from memeff import MemoryEfficientQwen3Loss
    except ImportError:
        return found
    # margin >= 2 masks no negatives; its gradient is the exact one without the stable rescaling. tau has no gradient.
    memeff = MemoryEfficientQwen3Loss(temperature=TAU, margin=2.0, normalized_inputs=True, stable=False)
    return found | {"memeff": lambda a, b, tau: memeff(a, b)}


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def problem(rows: int, width: int, dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(rows, width, generator=g), dim=1).to(device, dtype) for _ in range(2))
    leaves = (a, b, torch.full((rows,), TAU, device=device))
    return tuple(leaf.requires_grad_() for leaf in leaves)


def step(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> list[Tensor | None]:
    """Loss and gradients, kept as long as the caller keeps them."""
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)]


def check(precision: str, width: int) -> None:
    """The tolerance rule against float64; TF32 rounds its operands to 10 bits of mantissa, which is its bound.

    Raises:
        AssertionError: our result is not as accurate as it must be.
    """
    dtype = PRECISIONS[precision]
    leaves = problem(1000, width, dtype)
    doubles = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    truth, theirs, own = step(eager, doubles), step(eager, leaves), step(ours, leaves)
    for name, x, t, p in zip(("loss", "d h_ctr", "d h_cvr", "d tau"), own, truth, theirs):
        if precision == "tf32":
            assert (x - t).abs().max() <= 2e-2 * t.abs().max(), f"tf32, width {width}: {name}"
        else:
            assert_as_accurate(x, t, p.float(), dtype, f"{precision}, width {width}: {name}")


def median_seconds(run: Callable[[], object], warmup: int = 3, budget: float = 1.0) -> float:
    """Median of 5 to 50 runs, about ``budget`` seconds of them."""
    times: list[float] = []
    for i in range(warmup + 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= warmup:
            times.append(start.elapsed_time(end) / 1e3)
        if len(times) >= 5 and sum(times) > budget:
            break
    return statistics.median(times)


def measure(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> dict:
    """Seconds and added peak bytes of one forward and backward, or why there are none."""
    try:
        step(loss, leaves)  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, leaves)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return {"seconds": median_seconds(lambda: step(loss, leaves)), "peak_bytes": peak}
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # a contestant's failure is a result, not the end of the run
        if loss is ours:
            raise
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        torch.cuda.empty_cache()


def matmul_rate(precision: str, size: int = 8192) -> float:
    """FLOP/s of a square product, measured: what the card gives, as opposed to what is printed on its box."""
    x = torch.randn(size, size, device="cuda").to(PRECISIONS[precision])
    with matmul_precision(precision):
        return 2 * size**3 / median_seconds(lambda: x @ x)


def report(row: dict) -> str:
    where = f"{row['precision']:9} B={row['batch']:<7} d={row['width']:<4} {row['contestant']:30}"
    if "failed" in row:
        return f"{where} {row['failed']}"
    return (
        f"{where} {row['seconds'] * 1e3:9.3f} ms  {row['tflops']:7.1f} TFLOP/s ({row['of_matmul']:4.0%} of matmul)"
        f"  peak {row['peak_bytes'] / 2**20:9.1f} MiB"
    )


def compare(precision: str, batch: int, width: int, rate: float) -> Iterator[dict]:
    leaves = problem(batch, width, PRECISIONS[precision])
    with matmul_precision(precision):
        for name, loss in contestants().items():
            row = {"precision": precision, "batch": batch, "width": width, "contestant": name} | measure(loss, leaves)
            if "seconds" in row:
                flops = 4 * 2 * batch * batch * width / row["seconds"]
                row |= {"tflops": flops / 1e12, "of_matmul": flops / rate}
            yield row


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--batch", type=int, nargs="+", default=[2**k for k in range(10, 18)])
    made.add_argument("--width", type=int, nargs="+", default=[32, 64, 128, 256])
    made.add_argument("--precision", nargs="+", choices=tuple(PRECISIONS), default=["bfloat16", "float32"])
    return made


def main() -> int:
    options = parser().parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: needs a CUDA GPU", file=sys.stderr)
        return 2
    for precision in options.precision:
        for width in options.width:
            with matmul_precision(precision):
                check(precision, width)
    print("correct at every width and precision")
    rates = {precision: matmul_rate(precision) for precision in options.precision}
    rows = []
    for precision in options.precision:
        print(f"{precision}: matmul {rates[precision] / 1e12:.1f} TFLOP/s")
        for batch in options.batch:
            for width in options.width:
                for row in compare(precision, batch, width, rates[precision]):
                    rows.append(row)
                    print(report(row), flush=True)
    card = torch.cuda.get_device_properties(0)
    processors = card.multi_processor_count
    gpu = {"gpu": card.name, "processors": processors, "cuda": torch.version.cuda, "matmul FLOP/s": rates}
    print(write("infonce", rows, gpu))
    return 0


if __name__ == "__main__":
    sys.exit(main())
