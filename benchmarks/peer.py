"""The PyTorch peer: the same MoEMoE put together from the modules of transformers.

It is what the plain composition gives in good hands: batches are joint rows, one (product,
question) pair each, so every row has its product's text and image encoded; attention is fused
(SDPA), answers are padded to the longest of a batch, AdamW is the fused one, padding enters no
expert. It runs on a GPU that PyTorch sees, and in bfloat16 where we do (by autocast while
training). It has the paper's fusion as `benchmarks.sizes` sets it, and needs every source.

Shapes: R rows, S sources, K tokens, D width, L answer tokens, E experts, N tokens of a layer.
"""

from collections.abc import Callable
import functools
import time

import numpy as np
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.swinv2 import SwinV2Config
from moemoe_jax.nn.t5 import T5Config

transformers.logging.set_verbosity_error()

Rows = dict[str, torch.Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_IGNORED = -100  # a label that enters no loss


class Mixture(torch.nn.Module):
    """Top-k of E feed-forward blocks, by the usual loop over the experts.

    Attributes:
      valid: bool [N], the tokens that are routed at all; None is all of them.
      auxiliary: the load-balancing loss of the last call.
    """

    def __init__(self, experts: list[torch.nn.Module], width: int, config: MoEConfig):
        super().__init__()
        self.top_k = config.top_k
        self.router = torch.nn.Linear(width, config.num_experts, bias=False)
        torch.nn.init.normal_(self.router.weight, std=config.router_std)
        self.experts = torch.nn.ModuleList(experts)
        self.valid: torch.Tensor | None = None
        self.auxiliary: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [..., D] to [..., D]."""
        flat = x.reshape(-1, x.shape[-1])
        logits = self.router(flat)
        values, chosen = torch.topk(logits, self.top_k)
        shares = torch.softmax(values, dim=-1)
        if self.valid is not None:
            self.auxiliary = self._balance(logits[self.valid])
            chosen = chosen.masked_fill(~self.valid[:, None], len(self.experts))  # to nobody
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * shares[token, place, None])
        return out.reshape(x.shape)

    def _balance(self, logits: torch.Tensor) -> torch.Tensor:
        """E * sum over experts of (share of first choices) * (mean probability)."""
        count = logits.shape[-1]
        first = torch.nn.functional.one_hot(logits.argmax(-1), count).float().mean(0)
        return count * (first * torch.softmax(logits, -1).mean(0)).sum()


class Peer(torch.nn.Module):
    """The model of a `MoEMoEConfig`.

    Raises:
      ValueError: for a fusion or an alignment other than the paper's.
    """

    def __init__(self, config: MoEMoEConfig):
        super().__init__()
        fusion = (config.fusion.gate, config.fusion.gate_norm, config.fusion.image_repeat)
        if fusion != ("token", "none", "tile") or config.question_start:
            raise ValueError("the peer has the paper's fusion alone: see benchmarks/sizes.py")
        self.sources, self.length = config.sources, config.text_length
        text, width = config.text, config.text.d_model
        self.question = transformers.T5EncoderModel(_text(text))
        self.answer = transformers.T5ForConditionalGeneration(_text(text))
        self.vision = transformers.Swinv2Model(_vision(config.vision), add_pooling_layer=False)
        self.projection = torch.nn.Linear(config.vision.width, width)
        if config.vision.width == width:
            self.projection = torch.nn.Identity()
        self.gate = torch.nn.Linear(width, len(self.sources))
        torch.nn.init.constant_(self.gate.bias, 1 / len(self.sources))
        self.align = torch.nn.ModuleList(
            torch.nn.Linear(width, 1, bias=False) for _ in range(len(self.sources) + 1)
        )
        self.mixtures = []
        for index in config.moe_layers.of("decoder", text.num_decoder_layers):
            last = self.answer.decoder.block[index].layer[-1]
            kind = type(last.DenseReluDense)
            experts = [kind(self.answer.config) for _ in range(config.moe.num_experts)]
            last.DenseReluDense = Mixture(experts, width, config.moe)
            self.mixtures.append(last.DenseReluDense)

    def fuse(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, list, list]:
        """Fuses: e [R, K, D], the encodings of questions and sources, and which tokens are real.

        The weights are read from the question at every one of the K positions (eq 4).
        """
        question = _encode(self.question, rows["question"])
        sources, valid = [], []
        for source in self.sources:
            values = rows[source.name]
            if source.kind == "text":
                sources.append(_encode(self.answer, values))
                valid.append(values != 0)
                continue
            tokens = self.projection(self.vision(values).last_hidden_state)
            tokens = tokens.repeat(1, self.length // tokens.shape[1], 1)
            sources.append(tokens)
            valid.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
        weights = self.gate(question)
        e = sum(weights[..., s : s + 1] * tokens for s, tokens in enumerate(sources))
        return e, question, sources, valid

    def forward(self, rows: Rows, align_weight: float, aux_weight: float) -> torch.Tensor:
        """The objective, a mean over the rows."""
        e, question, sources, valid = self.fuse(rows)
        labels = rows["labels"]
        for mixture in self.mixtures:
            mixture.valid = (labels != _IGNORED).flatten()
        output = self.answer(encoder_outputs=BaseModelOutput(e), labels=labels)
        alignment = self._alignment(question, rows["question"] != 0, sources, valid)
        balance = sum(mixture.auxiliary for mixture in self.mixtures)
        return output.loss + align_weight * alignment + aux_weight * balance

    def _alignment(self, question, real, sources, valid) -> torch.Tensor:
        """|1 - cos| over the tokens that are real in both: a mean over rows, a sum over sources."""
        first, total = self.align[0](question)[..., 0], 0.0
        for project, tokens, there in zip(self.align[1:], sources, valid, strict=True):
            both = real & there
            pair = (first * both, project(tokens)[..., 0] * both)
            total = total + (1 - torch.cosine_similarity(*pair, dim=-1)).abs().mean()
        return total

    @torch.inference_mode()
    def generate(self, rows: Rows, length: int) -> torch.Tensor:
        """Greedy ids [R, <= 1 + length]."""
        for mixture in self.mixtures:
            mixture.valid = None
        e = self.fuse(rows)[0]
        return self.answer.generate(
            encoder_outputs=BaseModelOutput(e),
            attention_mask=torch.ones(e.shape[:2], dtype=torch.long, device=e.device),
            max_new_tokens=length,
            do_sample=False,
            num_beams=1,
        )


def _encode(t5: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return t5.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state


def _text(config: T5Config) -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        num_decoder_layers=config.num_decoder_layers,
        feed_forward_proj=config.activation,
        dropout_rate=config.dropout,
        decoder_start_token_id=0,
    )


def _vision(config: SwinV2Config) -> transformers.Swinv2Config:
    return transformers.Swinv2Config(
        image_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.heads),
        window_size=config.window_size,
        pretrained_window_sizes=list(config.pretrained_window_sizes),
        drop_path_rate=config.drop_path,
    )


def joint_rows(batch: dict, config: MoEMoEConfig) -> Rows:
    """A batch of products and questions as joint rows: pixels normalised, answers as labels."""
    product, question = np.nonzero(batch["question_valid"])
    index = batch["question_index"][product, question]
    asked = batch["question_ids"][index]
    # Its gate reads a question at every position of a text, so it is padded as far.
    asked = np.pad(asked, ((0, 0), (0, config.text_length - asked.shape[1])))
    rows = {"question": torch.from_numpy(asked).long()}
    mean, std = np.float32(config.image_mean), np.float32(config.image_std)
    for source in config.sources:
        values = batch["sources"][source.name]
        if source.kind == "image":
            pixels = (values.astype(np.float32) / 255 - mean) / std
            values = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        tensor = torch.from_numpy(values)
        rows[source.name] = (tensor if source.kind == "image" else tensor.long())[product]
    if "answer_ids" in batch:
        answers = torch.from_numpy(batch["answer_ids"][product, question]).long()
        rows["labels"] = answers.masked_fill(answers == 0, _IGNORED)
    return rows


def on_device(rows: Rows, dtype: torch.dtype = torch.float32) -> Rows:
    """The rows where the peer computes, pixels in `dtype`."""
    moved = {name: values.to(DEVICE) for name, values in rows.items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in moved.items()}


def finish() -> None:
    """Waits until all that was asked of the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def part(rows: Rows, first: int, count: int) -> Rows:
    """Some of the rows, their labels cut after the longest answer."""
    cut = {name: values[first : first + count] for name, values in rows.items()}
    if "labels" in cut:
        longest = int((cut["labels"] != _IGNORED).sum(1).max())
        cut["labels"] = cut["labels"][:, :longest].contiguous()  # T5's loss asks for it
    return cut


class Training:
    """Training steps of the peer on one batch, in micro-batches of as many rows as are asked for.

    Args:
      config: the settings.
      batch: of products and questions.
    """

    def __init__(self, config: ExperimentConfig, batch: dict):
        torch.manual_seed(config.train.seed)
        self._rows = on_device(joint_rows(batch, config.model))
        self.examples = len(self._rows["question"])
        self.model = Peer(config.model).to(DEVICE).train()
        mixed = config.model.text.dtype == "bfloat16"
        self._precision = functools.partial(torch.autocast, DEVICE, torch.bfloat16, mixed)
        self._weights = (config.loss.align_weight, config.loss.aux_weight)
        self._clip = config.optimizer.clip_norm
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.b1, config.optimizer.b2),
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )

    def step(self, loss: Callable, size: int, most: int | None = None) -> float:
        """One update; returns its seconds an example of the batch.

        Args:
          loss: the model, or what a compiler made of it.
          size: rows of a micro-batch.
          most: rows after which the others are taken to cost as much; None computes all. The
            update is then charged as part of the whole batch's time, as it comes once for it.
        """
        done, begun = 0, time.perf_counter()
        while done < min(self.examples, most or self.examples):
            rows = part(self._rows, done, size)
            count = len(rows["question"])
            with self._precision():
                value = loss(rows, *self._weights)
            (value * (count / self.examples)).backward()
            done += count
        finish()
        between = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        finish()
        update = time.perf_counter() - between
        return (between - begun) / done + update / self.examples
