"""MoEMoE put together from the PyTorch parts of transformers: one (product, question) a row.

Shapes: R rows, S sources, K tokens, D width, L answer tokens, E experts.
"""

import copy

from flax import nnx
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from transformers.modeling_outputs import BaseModelOutput

from tests.nn import torch_swinv2
from tests.nn.torch_t5 import torch_model, torch_name

# Our part -> (the part of TorchMoEMoE, the side of T5 that `torch_name` knows).
T5_PARTS = {
    "question_embedding": ("question", "embed"),
    "question_encoder": ("question", "encoder"),
    "decoder_embedding": ("answer", "embed"),
    "context_encoder": ("answer", "encoder"),
    "decoder": ("answer", "decoder"),
    "lm_head": ("answer", "head"),
}


class LoopMixture(torch.nn.Module):
    """Top-k experts, one token after the other; `block` becomes each of them, moved a little."""

    def __init__(self, block, width, config):
        super().__init__()
        self.top_k = config.top_k
        self.router = torch.nn.Linear(width, config.num_experts, bias=False)
        torch.nn.init.normal_(self.router.weight)
        self.experts = torch.nn.ModuleList(copy.deepcopy(block) for _ in range(config.num_experts))
        with torch.no_grad():
            for weight in self.experts.parameters():
                weight.add_(0.1 * torch.randn_like(weight))

    def forward(self, x):
        self.logits = self.router(x)  # kept for the auxiliary loss
        return torch.stack([torch.stack([self.one(token) for token in row]) for row in x])

    def one(self, token):
        values, chosen = torch.topk(self.router(token), self.top_k)
        weights = torch.softmax(values, dim=-1)
        return sum(w * self.experts[int(e)](token) for w, e in zip(weights, chosen, strict=True))

    def auxiliary(self, valid):
        """E * sum over experts of (share of first choices) * (mean probability)."""
        logits = self.logits[valid]
        count = logits.shape[-1]
        first = torch.nn.functional.one_hot(logits.argmax(-1), count).float().mean(0)
        return count * (first * torch.softmax(logits, -1).mean(0)).sum()


class TorchMoEMoE(torch.nn.Module):
    """The model of a `MoEMoEConfig` with the token gate; weights random and none of them zero."""

    def __init__(self, config, seed=0):
        super().__init__()
        self.config = config
        text, width = config.text, config.text.d_model
        self.question = torch_model(text, seed)  # only its encoder is used
        self.answer = torch_model(text, seed + 1)
        with torch.no_grad():  # or a tied T5 says its last token again and again
            self.answer.shared.weight.mul_(0.2)
        torch.manual_seed(seed + 2)
        count = len(config.sources)
        self.gate = torch.nn.Linear(width, count)
        self.align = torch.nn.ModuleList(
            torch.nn.Linear(width, 1, bias=False) for _ in range(count + 1)
        )
        self.projection = torch.nn.Identity()
        if config.vision.width != width:
            self.projection = torch.nn.Linear(config.vision.width, width)
        self.moe_layers = config.moe_layers.of("decoder", text.num_decoder_layers)
        for index in self.moe_layers:
            last = self.answer.decoder.block[index].layer[-1]
            last.DenseReluDense = LoopMixture(last.DenseReluDense, width, config.moe)
        self.vision = _vision(config.vision, seed + 3)
        self.eval()

    def forward(self, batch):
        """All that a test compares, of the rows whose question is asked."""
        config, asked = self.config, batch["question_valid"]
        products = np.nonzero(asked)[0]
        question_ids = _tensor(batch["question_ids"][batch["question_index"][asked]])
        question = _encode(self.question, question_ids)
        sources, valid, present = [], [], []
        for spec in config.sources:
            tokens, real = self._source(spec, batch["sources"][spec.name][products])
            sources.append(tokens)
            valid.append(real)
            present.append(torch.tensor(batch["source_valid"][spec.name][products]))
        present = torch.stack(present, dim=-1)

        scores = self.gate(question)  # [R, K, S], read at padding as well (eq 4)
        there = present[:, None, :].expand(scores.shape)
        if config.fusion.gate_norm == "softmax":
            weights = torch.softmax(scores.masked_fill(~there, -torch.inf), dim=-1)
        else:
            weights = scores * there
        e = sum(weights[..., s : s + 1] * tokens for s, tokens in enumerate(sources))  # eq 5

        mask = torch.ones(e.shape[:2], dtype=torch.long)
        if config.fusion.mask == "union":
            mask = sum(v & p[:, None] for v, p in zip(valid, present.T, strict=True)).bool().long()
        labels = _tensor(batch["answer_ids"][asked])
        output = self.answer(
            encoder_outputs=BaseModelOutput(e),
            attention_mask=mask,
            labels=labels.masked_fill(labels == 0, -100),
        )
        mixtures = [self.answer.decoder.block[i].layer[-1].DenseReluDense for i in self.moe_layers]
        return {
            "question": question,
            "sources": sources,
            "weights": weights,
            "e": e,
            "mask": mask,
            "logits": output.logits,
            "cross_entropy": output.loss,
            "alignment": self._alignment(question, question_ids != 0, sources, valid, present),
            "auxiliary": sum(mixture.auxiliary(labels != 0) for mixture in mixtures),
        }

    def generate(self, found, length):
        """Greedy ids [R, length] and log-probabilities, 0 after the first </s>."""
        output = self.answer.generate(
            encoder_outputs=BaseModelOutput(found["e"]),
            attention_mask=found["mask"],
            max_new_tokens=length,
            do_sample=False,
            use_cache=False,
            num_beams=1,
            pad_token_id=0,
            eos_token_id=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        scores = self.answer.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        ids = output.sequences[:, 1:].numpy()
        ended = np.cumsum(ids == 1, axis=1) - (ids == 1) > 0
        pad = ((0, 0), (0, length - ids.shape[1]))
        return np.pad(ids, pad), np.pad(np.where(ended, 0.0, scores.numpy()), pad)

    def _source(self, spec, values):
        """A source's tokens [R, K, D] and which of them are real."""
        length = self.config.text_length
        if spec.kind == "text":
            ids = _tensor(values)
            return _encode(self.answer, ids), ids != 0
        mean, std = np.array(self.config.image_mean), np.array(self.config.image_std)
        pixels = ((values / 255.0 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        hidden = self.vision(torch.tensor(pixels)).last_hidden_state
        tokens = self.projection(hidden).repeat(1, length // hidden.shape[1], 1)  # eq 3
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)

    def _alignment(self, question, question_valid, sources, valid, present):
        """The mean of |1 - cos| over the rows that have the source, one number a source."""
        first = self.align[0](question)[..., 0]
        losses = []
        for s, tokens in enumerate(sources):
            second = self.align[s + 1](tokens)[..., 0]
            common = question_valid & valid[s]
            rows = [
                torch.abs(1 - cosine_similarity(first[r][common[r]], second[r][common[r]], dim=0))
                for r in torch.nonzero(present[:, s])[:, 0]
            ]
            losses.append(sum(rows) / len(rows))
        return torch.stack(losses)


def _tensor(ids):
    return torch.tensor(np.asarray(ids), dtype=torch.long)


def _encode(t5, ids):
    return t5.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state


def _vision(config, seed):
    return torch_swinv2.randomize_(torch_swinv2.reference(config), seed).float()


def in_our_names(state, model, gradients=False):
    """`state` with its values replaced by the weights of `model`, or by their gradients."""
    tensors = {
        name: weight.grad if gradients else weight.detach()
        for name, weight in model.named_parameters()
    }
    vision = torch_swinv2.arrays(model.vision, gradients)

    def value(path, variable):
        return variable.replace(jnp.asarray(_array(path, tensors, vision)))

    return nnx.map_state(value, state)


def _array(path, tensors, vision):
    """The array of one of our parameters."""
    top, *rest = path
    if top == "image_encoder":
        return vision[".".join(map(str, rest))]
    if top in T5_PARTS:
        part, side = T5_PARTS[top]
        name, transposed = torch_name((side, *rest))
        found = tensors.get(f"{part}.{name}")
        if found is not None:
            return found.numpy().T if transposed else found.numpy()
        block, leaf, _ = name.rsplit(".", 2)
        count = sum(f"{part}.{block}.experts." in n and f".{leaf}." in n for n in tensors)
        experts = [tensors[f"{part}.{block}.experts.{e}.{leaf}.weight"] for e in range(count)]
        return np.stack([expert.numpy().T for expert in experts])
    name = {"gate": "gate", "image_projection": "projection"}.get(top) or f"align.{path[2]}"
    found = tensors[f"{name}.{'weight' if path[-1] == 'kernel' else 'bias'}"]
    return found.numpy().T
