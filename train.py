"""Fine-tunes a policy and its EOS head: the built-in demo, unless flags say what else. `python train.py --help` lists them."""

import sys
from pathlib import Path
from typing import Any

from eosjax import runtime
from eosjax.extras import check_train_extra
from eosjax.reports.texts import literal_lines
from eosjax.training.interrupt import stop_at_once
from eosjax.types import UserError

DEMO = Path(__file__).parent / "configs" / "demo.yaml"
USER_ERROR = 2  # exit status, as of the command `eosjax`; 1 is Python's own for a traceback
# Flags that say what to train on; without any of them it is the demo.
SUBJECT = {"config_path", "vla_path", "data_root_dir", "dataset_name", "substep_labels_path"}


def play_demo(run_dir: Path) -> int:
    """Lets the demo's policy act on 50 new tables, and the expert under its EOS head; the exit status of `eosjax rollout`."""
    from eosjax import cli

    print("\nOn 50 new tables, with what `eosjax rollout` measures (docs/closed_loop.md):")
    flags = ["--env", "demo", "--switch", "oracle,eos,none", "--executor", "all", "--out", str(run_dir / "rollout")]
    return cli.main(["rollout", "--checkpoint", str(run_dir), *flags])


def main(argv: list[str]) -> None:
    """Reads the flags and trains; what the user can mend ends in one line instead of a traceback."""
    stop_at_once()
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  # a ✓ must not end a run
    try:
        check_train_extra()
        from eosjax import flags  # after the check, since it needs the extra

        demo = not SUBJECT & flags.flag_names(argv)
        parsed = flags.parse([*(("--config_path", str(DEMO)) if demo else ()), *argv])
        runtime.prepare(parsed.compile_cache_dir, deterministic=parsed.deterministic)
        # After the flags: a wrong one is answered before JAX is loaded.
        import jax

        from eosjax.reports.end_of_training import write_comparison
        from eosjax.training.run import run

        compared = []  # once the run is whole

        def report(*found: Any) -> str:
            compared.append(write_comparison(*found))
            return compared[0]

        run(parsed, report)
        if demo and compared and jax.process_count() == 1:
            sys.exit(play_demo(parsed.run_dir))
    except UserError as error:
        print(literal_lines(f"train.py: {error}"), file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
