"""`python -m tests.fuzz`: the long campaign, with the count of answers by method and code."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.contract.targets import find_spdk_tgt
from tests.fuzz import balance
from tests.fuzz.lifecycle import Scene
from tests.fuzz.subject import Subject, frontend


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--target", choices=("embedded", "real"), default="embedded")
    arguments = parser.parse_args()
    if arguments.target == "real" and find_spdk_tgt() is None:
        parser.error("spdk_tgt not found (SPDK_TGT or PATH)")
    subject = Subject(arguments.target, "1GiB")
    print(f"seed {arguments.seed}, {arguments.target} target, {arguments.requests} requests", flush=True)
    try:
        subject.target.start()
        subject.start_agent()
        scene = Scene(subject.pods, subject.canary, frontend(subject))
        try:
            result = asyncio.run(balance.run(subject, scene, arguments.requests, arguments.seed))
        except BaseException:
            print(subject.agent_log()[-20_000:])
            raise
        print(result)
        for fault in result.faults:
            print(f"\nFAULT {fault}")
        return 1 if result.faults else 0
    finally:
        subject.close()


if __name__ == "__main__":
    sys.exit(main())
