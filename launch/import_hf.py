r"""Makes a work directory from Hugging Face weights: a T5 and a SwinV2.

    python -m launch.import_hf --text=flan-t5-base --vision=swinv2-tiny --workdir=runs/start
    python -m launch.import_hf --text=flan-t5-base --vision=swinv2-tiny --workdir=runs/start \
        --config.model.moe_layers.decoder=odd --config.init.expert_noise=0.01
    python -m launch.import_hf --model=exported/moemoe --workdir=runs/back

The folders are as a download from the hub or `save_pretrained` leaves them; only safetensors and
JSON are read. Text: T5 1.0 and 1.1, Flan-T5, mT5, umT5, Switch Transformers. Images: SwinV2. Sizes,
activations, image size and normalisation follow from the files, all else from --config. Then:

    python -m launch.predict --workdir=runs/start --input=products.jsonl --output=answers.jsonl
    python -m launch.train --config=runs/start/config.json --workdir=runs/start
    python -m launch.train --config=runs/start/config.json --config.init.work_dir=runs/start \
        --workdir=runs/mine --config.optimizer.learning_rate=1e-4

The second trains in place, with the settings given here; the third with others, elsewhere.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from absl import flags

from launch import common

common.define_workdir("The work directory to make; must not exist.")
flags.DEFINE_string("text", "", "Folder of a T5 or a Switch Transformer, with its tokenizer.")
flags.DEFINE_string("vision", "", "Folder of a SwinV2; none where no source is an image.")
flags.DEFINE_string("model", "", "Folder `moemoe` of an export, in place of --text and --vision.")


def main(argv: Sequence[str]) -> None:
    """Imports as the flags say."""
    del argv
    from moemoe_jax.errors import UserError
    from moemoe_jax.interop.importing import import_model, import_parts

    args = flags.FLAGS
    if bool(args.text) == bool(args.model):
        raise UserError("give either --text=DIR and --vision=DIR, or --model=DIR")
    if args.model:
        if args.vision:
            raise UserError("--model has an image encoder of its own; leave --vision out")
        import_model(args.config, args.model, args.workdir)
    else:
        import_parts(args.config, args.text, args.vision, args.workdir)
    start = f"--config={args.workdir}/config.json --config.init.work_dir={args.workdir}"
    print(f"to train it: python -m launch.train {start} --config.data.source=… --workdir=…")


def default_config(argv: Sequence[str]) -> str:
    """An exported model brings its own settings; for weights of others it is the paper's."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "model" and argument.startswith("-"):
            file = Path(value if equals else following, "config.json")
            # Where there is none, the import says what is wrong with the folder.
            return str(file) if file.is_file() else "configs/paper.py"
    return "configs/paper.py"


if __name__ == "__main__":
    common.run(main, config=default_config(sys.argv))
