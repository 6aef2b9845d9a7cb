"""The command line of an entry point, each mistake in it told in one line."""

import difflib
import re

from absl import flags

from moemoe_jax.errors import UserError


def parse(argv: list[str], config: str) -> list[str]:
    """Parses the flags, the config file first; returns what is no flag.

    Args:
      argv: the command line.
      config: the default of `--config`; where it is empty there is no such flag.

    Raises:
      UserError: for all that absl and ml_collections have to say.
    """
    try:
        if config:
            from launch.config_flag import define_config

            argv = define_config(argv, config)
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        # Absl would suggest its own flags as well, which no --help shows.
        modules = flags.FLAGS.flags_by_module_dict().items()
        ours = [f.name for module, own in modules if not module.startswith("absl.") for f in own]
        near = difflib.get_close_matches(error.flagname, ours, n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise UserError(f"there is no flag --{error.flagname}{hint} (--help lists them)") from None
    except flags.Error as error:
        raise UserError(_told(error)) from None


def _told(error: flags.Error) -> str:
    """What absl says, in our words where these are clearer."""
    text = " ".join(str(error).split())
    if missing := re.search(r"Flag --(\w+) must have a value", text):
        return f"--{missing[1]} is missing; add --{missing[1]}=…"
    # "flag --name=value: why", where the reason is that of the exception which absl met.
    reason = " ".join(str(error.__context__).split())
    wrong = re.fullmatch(rf"flag --([^=]+)=(.*): {re.escape(reason)}", text)
    if wrong and (wanted := _wanted(flags.FLAGS[wrong[1]].parser)):
        return f"--{wrong[1]} is {wrong[2]!r}; give {wanted}"
    return f"{text} (--help lists the flags)"


def _wanted(parser: flags.ArgumentParser) -> str:
    """What a flag takes, in words; empty where absl's own say it better."""
    from moemoe_jax.config_tree import WORDS

    words = {kind.__name__: text for kind, text in WORDS.items()}.get(parser.flag_type(), "")
    for bound, what in (("lower_bound", "or more"), ("upper_bound", "or less")):
        if (limit := getattr(parser, bound, None)) is not None:
            words += f", {limit} {what}"
    return words
