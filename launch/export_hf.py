r"""Writes a trained model as folders that Hugging Face transformers loads, and whole as one file.

    python -m launch.export_hf --workdir=runs/mine --out=exported
    python -m launch.import_hf --model=exported/moemoe --workdir=runs/back

text/ holds the context encoder and the decoder as one T5 (or Switch Transformer), question_encoder/
the question encoder, vision/ the SwinV2, each for `from_pretrained`; moemoe/ holds everything, and
importing that gives the same model, bit for bit. A mixture that transformers has no class for is in
moemoe/ alone, and the command says so.
"""

from collections.abc import Sequence

from absl import flags

from launch import common

common.define_workdir("The work directory of a trained or imported model.")
flags.DEFINE_string("out", None, "Folder to make.", required=True)
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")


def main(argv: Sequence[str]) -> None:
    """Exports as the flags say."""
    del argv
    from moemoe_jax.interop.exporting import export

    args = flags.FLAGS
    export(args.workdir, args.out, args.checkpoint)


if __name__ == "__main__":
    common.run(main)
