"""Quantize and export a checkpoint of the published size (random weights): time, peak memory, killed and resumed.

    python docs/measurements/full_size_quantize.py 3b gptq WORKDIR [KILLS] >> docs/measurements/full_size_quantize.txt

Needs the extra `[test]` and a quiet machine; WORKDIR takes 25 GB for 3b and 50 GB for 7b. The checkpoint in it is made
by full_size_checkpoint.py if it is not there. Calibration: 32 of nano's conversations, chained to 16 of two questions:
the least number that is taken, and some 4,000 tokens, enough for the widest layer. With KILLS the command is killed
(SIGKILL) that often, at moments drawn by chance, and given again each time; the result lies beside that of a run
without, and the files of both are compared when both are there. Peak memory is that of the process, mapped files
included. Linux.
"""

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONVERSATIONS, QUESTIONS = 16, 2
NEARFIELD = str(Path(sys.executable).with_name("nearfield"))


def write_calibration(folder: Path) -> None:
    """Chain some of nano's conversations to fewer and longer ones."""
    nano = ROOT / "nano" / "calibration"
    shutil.copytree(nano, folder)
    lines = (nano / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    chained = []
    for first in range(CONVERSATIONS):
        its = conversations[first::CONVERSATIONS][:QUESTIONS]
        turns = [message for messages in its for message in messages if message["role"] != "system"]
        chained.append({"messages": [its[0][0], *turns]})
    text = "".join(json.dumps(conversation) + "\n" for conversation in chained)
    (folder / "calibration.jsonl").write_text(text, encoding="utf-8")


def run(arguments: list[str], kill_after_s: float | None = None) -> tuple[bool, float, float, float]:
    """Run a command of Nearfield: whether it ended by itself, its seconds, seconds of CPU, and peak memory in GB."""
    began = time.monotonic()
    process = subprocess.Popen([NEARFIELD, *arguments])
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if kill_after_s is not None and time.monotonic() > began + kill_after_s:
            process.kill()
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    killed = kill_after_s is not None and process.returncode == -signal.SIGKILL
    if process.returncode and not killed:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    seconds = time.monotonic() - began
    return not killed, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def quantize(checkpoint: Path, out: Path, calibration: Path, method: str, kills: int) -> None:
    """Quantize, killed now and then, and print a line each time it ends."""
    command = ["quantize", str(checkpoint), "-o", str(out), "--calibration", str(calibration), "--method", method]
    total_s = 0.0
    for kill_after_s in (*(random.uniform(20, 600) for _ in range(kills)), None):
        ended, seconds, cpu, peak = run(command, kill_after_s)
        total_s += seconds
        how = "ended" if ended else "killed"
        print(f"  {how} after {seconds:.0f} s, {cpu:.0f} s of CPU; peak memory {peak:.2f} GB", flush=True)
        if ended:
            break
    print(f"  {out.name}: {total_s / 60:.1f} minutes in all", flush=True)


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = sorted(path.name for path in one.iterdir())
    equal, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(path.name for path in other.iterdir()) == names == sorted(equal)


def main() -> None:
    """Quantize, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("3b", "7b"))
    parser.add_argument("method")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("kills", type=int, nargs="?", default=0)
    args = parser.parse_args()
    checkpoint, calibration = args.workdir / f"full-{args.size}", args.workdir / "calibration"
    if not checkpoint.exists():
        maker = Path(__file__).with_name("full_size_checkpoint.py")
        subprocess.run([sys.executable, str(maker), args.size, str(checkpoint)], check=True)
    if not calibration.exists():
        write_calibration(calibration)
    plain = args.workdir / f"full-{args.size}-{args.method}"
    killed = plain.with_name(f"{plain.name}-killed")
    out = killed if args.kills else plain
    print(f"== nearfield quantize, {args.size}, {args.method}, {os.cpu_count()} cores", flush=True)
    quantize(checkpoint, out, calibration, args.method, args.kills)
    if plain.exists() and killed.exists():
        print(f"  killed and resumed, or in one go: {'the same files' if same(plain, killed) else 'OTHER FILES'}")
        return
    bundle = out.with_name(f"{out.name}-bundle")
    _, seconds, cpu, peak = run(["export", str(out), "-o", str(bundle), "--overwrite"])
    print(f"== nearfield export: {seconds:.0f} s, {cpu:.0f} s of CPU; peak memory {peak:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
