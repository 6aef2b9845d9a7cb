"""Answering many questions about each product against the peer's `generate`, in seconds each."""

from collections.abc import Callable

from benchmarks.batches import random_batch
from benchmarks.isolated import require_torch
from benchmarks.measure import Context, Samples, best, in_turn, timed
from benchmarks.ours import Answering, experiment
from benchmarks.sizes import BATCHES, settings

_QUESTIONS = 38
_ROWS = (8, 38, 152)  # the peer's batches that are tried


def against_peer(context: Context) -> Samples:
    """Greedy answers of up to 16 tokens, encoding included; no answer ends early on either side."""
    require_torch()
    import torch

    from benchmarks import peer

    products = BATCHES[context.size].answered
    config = experiment(settings(context.size, _QUESTIONS, products))
    batch = random_batch(config)
    del batch["answer_ids"]
    dtype = getattr(torch, config.model.text.dtype)
    rows = peer.on_device(peer.joint_rows(batch, config.model), dtype)
    torch.manual_seed(0)
    model = peer.Peer(config.model).to(peer.DEVICE, dtype).eval()
    with torch.no_grad():
        model.answer.shared.weight[model.answer.config.eos_token_id] = 0.0

    def generate(size: int) -> Callable[[], object]:
        part = peer.part(rows, 0, size)

        def run() -> None:
            model.generate(part, config.data.answer_length)
            peer.finish()

        return run

    sizes = [size for size in _ROWS if size <= products * _QUESTIONS]
    name, theirs = best({f"{size} rows": timed(generate(size), per=size) for size in sizes})
    ours = timed(Answering(config), per=products * _QUESTIONS)
    return Samples("s a question", *in_turn(ours, theirs, context.repetitions), f"PyTorch: {name}")
