"""`scalelab generate`: how a trained run, a model folder or the base decoder continues a prompt.

Taught in book/transformers/training.md and book/transformers/inference.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.parser import Command, Parser, real_number, seed_number, whole_number
from scalelab.cli.run_folder import SETTINGS_FILE, TOKENIZER_FILE, read_run_settings
from scalelab.core.artifacts import user_path
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from scalelab.data import Tokenizer
    from scalelab.models import Decoder

DEFAULT_NEW_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_K = 200, 0.8, 40
MODEL_FILE = "config.json"  # of a folder that `scalelab pretrain` wrote


def run(argv: Sequence[str]) -> int:
    """Print a prompt and its continuation.

    Raises:
        CheckpointError, DataFileError, WeightsError: no run or model there, or a damaged one.
        ConfigError, DataError: a model that writes no text, a setting out of range, or a prompt that the
            tokenizer cannot spell.
    """
    args = _parser().parse(argv)
    model, tokenizer = load_writer(args.run)
    text = continue_text(
        model,
        tokenizer,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": text, "seed": args.seed}))
    else:
        print(args.prompt + text)
    return 0


def load_writer(where: str) -> tuple[Decoder, Tokenizer]:
    """A decoder and its tokenizer: of a run, of a model folder, or the base model of that name.

    A folder of that name comes before a base model.

    Raises:
        CheckpointError, DataFileError, WeightsError: nothing is there, or it is damaged.
        ConfigError: a model that continues no text.
    """
    from scalelab.lab.pretrained import NAMES, base_folder, read_model_folder
    from scalelab.models import Decoder

    folder = user_path(where)
    if not folder.is_dir() and where in NAMES:
        folder = base_folder(where)
    elif not folder.exists():
        raise CheckpointError(
            f"there is no run at {folder}: give the folder that was --out of `scalelab train`, the model's "
            f"folder that `scalelab pretrain` wrote, or the name of a base model ({', '.join(NAMES)})"
        )
    elif (folder / SETTINGS_FILE).exists() or not (folder / MODEL_FILE).exists():
        return load_run(folder)
    found = read_model_folder(folder)
    if not isinstance(found.model, Decoder):
        raise ConfigError(f"{where} is an {type(found.model).__name__}: only a Decoder continues a text")
    return found.model, found.tokenizer


def load_run(run_dir: Path) -> tuple[Decoder, Tokenizer]:
    """The model of a run's newest whole checkpoint, on the CPU, and the run's tokenizer.

    Raises:
        CheckpointError, DataFileError: no run there, or a damaged one.
        ConfigError: a run of another kind of model.
    """
    read_run_settings(run_dir)  # says clearly what is not a run
    from scalelab.data import load_tokenizer
    from scalelab.models import Decoder
    from scalelab.train import load_checkpoint
    from scalelab.train.state import load_model_tensors

    tokenizer = load_tokenizer(run_dir / TOKENIZER_FILE)
    checkpoint = load_checkpoint(run_dir)
    config = checkpoint.model_config
    if not isinstance(config, DecoderConfig):
        raise ConfigError(
            f"{run_dir} holds a model of {type(config).__name__}: only a Decoder continues a text"
        )
    if config.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{run_dir / TOKENIZER_FILE} has {tokenizer.vocab_size} ids, the model another number: "
            "it is another run's"
        )
    model = Decoder(config)
    load_model_tensors(model, checkpoint.weights, checkpoint.aliases)
    return model, tokenizer


def continue_text(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> str:
    """What follows the prompt, up to the end of the text if the model writes one.

    Args:
        prompt: may be empty: a text then begins, as after the end of another.
    """
    import torch

    from scalelab.models import generate

    start = tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]
    ids = generate(
        model,
        torch.tensor([start]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end_id=tokenizer.end_of_text,
    )
    # The end spells nothing, nor do the special ids behind it in a base model's table.
    return tokenizer.decode([i for i in ids[0, len(start) :].tolist() if i < tokenizer.end_of_text])


def _parser() -> Parser:
    parser = Parser(
        "scalelab generate",
        "Let a trained model continue a prompt. The same seed writes the same text.",
        """
  scalelab generate runs/first --prompt "def "
  scalelab generate decoder --prompt "import " --top-k all --top-p 0.9
  scalelab generate runs/first --prompt "import " --max-new-tokens 400 --temperature 0.6 --top-k 10 --seed 3
""",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="the run's folder (--out of `scalelab train`), a model folder, or the base model `decoder`",
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to continue (a new text)")
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number,
        default=DEFAULT_NEW_TOKENS,
        metavar="N",
        help=f"tokens to write at most ({DEFAULT_NEW_TOKENS})",
    )
    parser.add_argument(
        "--temperature",
        type=real_number,
        default=DEFAULT_TEMPERATURE,
        metavar="X",
        help=f"below 1 the likely becomes likelier; 0 always takes the likeliest ({DEFAULT_TEMPERATURE})",
    )
    parser.add_argument(
        "--top-k",
        type=_top_k,
        default=DEFAULT_TOP_K,
        metavar="N",
        help=f"draw from so many likeliest tokens, or all ({DEFAULT_TOP_K})",
    )
    parser.add_argument(
        "--top-p",
        type=real_number,
        metavar="X",
        help="of those, draw from the fewest likeliest tokens with this mass together (all)",
    )
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="of the draws (0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the text")
    return parser


def _top_k(text: str) -> int | None:
    return None if text == "all" else whole_number(text)


COMMAND = Command("generate", "write text with a trained run", run)
