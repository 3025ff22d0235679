"""
Faults, a thousand of them, while callers are being transcribed: nothing of what they say may get
lost, and nothing may stay behind.

    python tests/chaos/chaos.py --faults 1000 --seed 1
    python tests/chaos/chaos.py --faults 60 --repository build/cpu/model_repository --corpus FOLDER

Two gateways, two workers, two Tritons and two Redis with three Sentinels, with a proxy on every
connection. Callers have keys with quotas and speak under TLS, while others try what they may not;
--open and --sentinels 0 leave these out. What happens follows from the seed. A run that was
interrupted goes on where it was: build/chaos/SEED.jsonl. Logs are in build/chaos/SEED. Progress
goes to standard error; the last line is one JSON object. The exit status is 1 if an invariant was
broken.
"""

import argparse
import asyncio
import itertools
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import checks
import intruders
from caller import Call, Caller, Message
from deployment import ROOT, Deployment, Size, deployed
from faults import kinds, plan
from injector import Injector, Struck
from journal import Journal
from readings import Reading, readings
from recovery import Recovery, Sample
from redis.exceptions import RedisError
from support import hardships

FOLDER = ROOT / "build" / "chaos"
CALLERS = 6
GAP_S = (2.0, 4.0)
QUIET_EVERY = 100  # faults
# For slots to be those of the living: a lease, and the moment until somebody looks. Longer for
# connections whose other side is silent.
SLOTS_WITHIN_S, CONNECTIONS_WITHIN_S = 45.0, 50.0
# After Redis lost what it knew, until gateways have told it again: a caller that comes back
# earlier, its gateway being gone, may have nothing to come back to.
EXCUSED_S = intruders.TOLD_AGAIN_S
NOTICED_S = 2.0  # that one Redis follows another now
READY_WITHIN_S = 60.0  # for every process, after whatever was done
MORE_DESCRIPTORS = 4

References = dict[str, list[Message]]


async def references(deployment: Deployment, every: Sequence[Reading], journal: Journal):
    """The finals of each reading when nothing is disturbed. Those that are others when all call at
    once are left out: neighbours in a batch can flip what is nearly even."""
    door = deployment.door(deployment.free_key)
    alone = References()
    for number, reading in enumerate(every):
        alone[reading.name] = await _undisturbed(Caller(door, random.Random(number)), reading)
    waiting, excluded = list(every), list[str]()

    async def take(caller: Caller) -> None:
        while waiting:
            reading = waiting.pop()
            finals = await _undisturbed(caller, reading)
            if checks.differences(alone[reading.name], finals):
                excluded.append(reading.name)

    await asyncio.gather(*(take(Caller(door, random.Random(n))) for n in range(CALLERS)))
    journal.add("references", readings=len(every), excluded=sorted(excluded))
    return {name: finals for name, finals in alone.items() if name not in excluded}


async def _undisturbed(caller: Caller, reading: Reading) -> list[Message]:
    call = await caller.read(reading, paced=False)
    if not call.ended or call.broken:
        raise SystemExit(f"undisturbed, {reading.name} fails: {call.broken or call.unresumable}")
    return call.finals


class Chaos:
    """One run on a deployment that serves."""

    def __init__(self, deployment: Deployment, journal: Journal, seed: int, callers: int):
        self.deployment, self.journal, self._seed = deployment, journal, seed
        closed = deployment.protection
        keys = closed.tenants if closed else [""]
        self.callers = [
            Caller(deployment.door(keys[n % len(keys)]), random.Random(seed + n))
            for n in range(callers)
        ]
        self.injector = Injector(deployment, self.callers, self._misbehaved)
        self.recovery = Recovery(deployment, self._recovered)
        self._logs = checks.Logs(deployment.folder, closed.secrets() if closed else ())
        self._calling = asyncio.Event()
        self._crowd: list[asyncio.Task[None]] = []
        self._descriptors: dict[int, list[str]] = {}

    @asynccontextmanager
    async def calls(self, every: Sequence[Reading]) -> AsyncGenerator[None]:
        """Callers make one call after the other, each compared with the undisturbed one."""
        known = await references(self.deployment, every, self.journal)
        usable = [reading for reading in every if reading.name in known]
        self._descriptors = checks.descriptors(self.deployment)
        self._calling.set()
        self._crowd = [
            asyncio.create_task(self._call(caller, number, usable, known))
            for number, caller in enumerate(self.callers)
        ]
        if self.deployment.protection:
            self._crowd.append(asyncio.create_task(self._intrude()))
        try:
            await asyncio.sleep(2)
            yield
        finally:
            for task in self._crowd:
                task.cancel()
            await asyncio.gather(*self._crowd, return_exceptions=True)

    async def strike(self, faults: int, gap_s: tuple[float, float]) -> None:
        """While they call: the faults of the seed, up to that many, those of the journal done."""
        size = self.deployment.size
        possible = kinds(sentinels=bool(size.sentinels), clocks=size.clocks)
        planned = plan(self._seed, gap_s, possible)
        for fault in itertools.islice(planned, self.journal.faults, faults):
            await asyncio.sleep(fault.after_s)
            for task in self._crowd:
                if task.done():
                    task.result()
            struck = await self.injector.strike(fault)
            self.recovery.strike(struck)
            self._note(struck, faults)
            if (fault.number + 1) % QUIET_EVERY == 0 and fault.number + 1 < faults:
                await self.quiet()
        await self.quiet()

    async def roll(self) -> None:
        """Every process in turn is stopped as a deploy does, and started again."""
        for member in self.deployment.members.values():
            await self._ready()
            await asyncio.sleep(1)
            process = member.part.process
            assert process
            process.terminate()
            await process.wait()
            _say(f"{member.part.name} has left")

    async def quiet(self) -> None:
        """No more faults for a moment: whether all is as it should be."""
        await self.injector.settle()
        await self.recovery.settle()
        await self._ready()
        await self._slots("while callers speak")
        self._calling.clear()
        while any(caller.call for caller in self.callers):
            await asyncio.sleep(0.05)
        await self._slots("with nobody there")
        deadline = time.monotonic() + CONNECTIONS_WITHIN_S
        while (found := checks.connections(self.deployment)) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._broken("connections", found)
        for pid, files in checks.descriptors(self.deployment).items():
            before = self._descriptors.setdefault(pid, files)
            if len(files) > len(before) + MORE_DESCRIPTORS:
                sentence = f"process {pid}: {len(before)} files, now {', '.join(files)}"
                self._broken("descriptors", [sentence])
        self._calling.set()

    async def _ready(self) -> None:
        try:
            await self.deployment.until_ready(READY_WITHIN_S)
        except TimeoutError:
            unwell = [
                n for n, m in self.deployment.members.items() if not await self.deployment.well(m)
            ]
            sentence = f"not ready after {READY_WITHIN_S:g} s: {', '.join(unwell) or 'no workers'}"
            self._broken("ready", [sentence])

    async def _slots(self, when: str) -> None:
        deadline = time.monotonic() + SLOTS_WITHIN_S
        while True:
            try:
                live = {c.session_id for c in self.callers if c.connection and c.call}
                found = await checks.slots(await self.deployment.redis(), live)
            except (RedisError, OSError) as error:
                found = [f"Redis: {error}"]
            if not found or time.monotonic() > deadline:
                return self._broken("slots", [f"{when}: {sentence}" for sentence in found])
            await asyncio.sleep(0.05)

    async def _call(
        self, caller: Caller, number: int, every: Sequence[Reading], known: References
    ) -> None:
        rng = random.Random(1000 * self._seed + number)
        # Not all at once, and not the same again after an interruption.
        rng.seed(rng.random() + self.journal.faults)
        while True:
            await self._calling.wait()
            await asyncio.sleep(rng.uniform(0, 1))
            if self._calling.is_set():
                reading = rng.choice(every)
                self._heard(await caller.read(reading), known[reading.name])

    async def _intrude(self) -> None:
        """Try what nobody may, one thing after the other."""
        rng = random.Random(self._seed + self.journal.faults)
        intruder = intruders.Intruder(self.deployment, self.callers, rng)
        while True:
            for kind in rng.sample(list(intruders.REFUSED), len(intruders.REFUSED)):
                await self._calling.wait()
                await asyncio.sleep(rng.uniform(*intruders.EVERY_S))
                if attempt := await intruder.attempt(kind):
                    self.journal.add("intrusion", kind=kind, outcome=attempt.outcome)
                    self._broken("access", [attempt.broken] if attempt.broken else [])

    def _heard(self, call: Call, reference: list[Message]) -> None:
        found = checks.differences(reference, call.finals)
        call.broken += [sentence for at, sentence in call.set_back if not self._forgotten(at)]
        excused = bool(call.unresumable) and self._forgotten(call.unresumable_at)
        if call.unresumable and not excused:
            found.append(f"it could not go on: {call.unresumable}")
        odd = bool(found or call.broken)
        self.journal.add(
            "call",
            differences=[] if excused else found,
            excused=call.unresumable if excused else "",
            **asdict(call) | {"finals": len(call.finals), "story": call.story if odd else []},
        )
        if found and not excused:
            _say(f"DIFFERENT {call.reading}: {'; '.join(found)}")
        for sentence in call.broken:
            _say(f"BROKEN {call.reading}: {sentence}")

    def _forgotten(self, at: float) -> bool:
        """Whether Redis may have lacked then what it had been told."""
        return any(then - NOTICED_S <= at <= then + EXCUSED_S for then in self.deployment.forgot)

    def _recovered(self, sample: Sample) -> None:
        fields = {"kind": sample.what, "seconds": sample.seconds, "clean": sample.clean}
        self.journal.add("recovery", **fields)

    def _note(self, struck: Struck, faults: int) -> None:
        self.journal.add(
            "fault",
            number=struck.fault.number,
            kind=struck.fault.kind,
            target=struck.target,
            mid_utterance=struck.mid_utterance,
            at=time.time(),
            waited_s=round(struck.waited_s, 2),
        )
        self._broken("logs", self._logs.troubles())
        where = "in mid-utterance" if struck.mid_utterance else "between utterances"
        calls, broken = len(self.journal.of("call")), len(self.journal.broken())
        _say(
            f"{struck.fault.number + 1}/{faults} {struck.fault.kind}: {struck.target}, {where}; "
            f"{calls} calls, {broken} broken"
        )

    def _misbehaved(self, sentence: str) -> None:
        self._broken("processor", [sentence])

    def _broken(self, invariant: str, sentences: list[str]) -> None:
        for sentence in sentences:
            self.journal.add("broken", invariant=invariant, sentence=sentence)
            _say(f"BROKEN {sentence}")

    async def leftovers(self) -> None:
        """After the deployment has stopped."""
        deadline = time.monotonic() + 5
        while (alive := self.deployment.processes()) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._broken("logs", self._logs.troubles())
        self._broken("leftovers", [f"process {p.pid} is left: {p.name()}" for p in alive])
        shared = sorted(self.deployment.shared_memory())
        self._broken("leftovers", [f"/dev/shm/{name} is left" for name in shared])


async def run(
    folder: Path,
    seed: int,
    faults: int,
    *,
    callers: int = CALLERS,
    gap_s: tuple[float, float] = GAP_S,
    size: Size | None = None,
    corpus: Path | None = None,
) -> Journal:
    """The whole of it: start, faults, checks, stop."""
    journal = Journal.open(folder / f"{seed}.jsonl")
    if journal.faults < faults:
        async with deployed(folder / str(seed), size) as deployment:
            chaos = Chaos(deployment, journal, seed, callers)
            async with chaos.calls(readings(corpus)):
                await chaos.strike(faults, gap_s)
        await chaos.leftovers()
    return journal


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--callers", type=int, default=CALLERS)
    parser.add_argument("--open", action="store_true", help="no keys, no quotas, no TLS")
    parser.add_argument("--sentinels", type=int, default=3, help="0: one Redis alone (3)")
    parser.add_argument("--tritons", type=int, default=2)
    parser.add_argument("--gap", type=float, nargs=2, default=GAP_S, help="seconds between faults")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--repository", type=Path, help="of models (build/model_repository)")
    parser.add_argument("--corpus", type=Path, help="people to read, as bench/corpus.py has them")
    args = parser.parse_args()

    async def serve() -> Journal:
        task = asyncio.current_task()
        assert task
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        size = Size(
            tritons=args.tritons,
            sessions=max(Size.sessions, args.callers),
            sentinels=args.sentinels,
            callers=0 if args.open else args.callers,
            haproxy=not args.open and shutil.which("haproxy") is not None,
            clocks=hardships.fake_time() is not None,
        )
        if not size.clocks:
            _say("there is no libfaketime: no clock will jump")
        if args.repository:
            size = replace(size, repository=args.repository.resolve())
        gap_s = (args.gap[0], args.gap[1])
        return await run(
            args.folder,
            args.seed,
            args.faults,
            callers=args.callers,
            gap_s=gap_s,
            size=size,
            corpus=args.corpus,
        )

    try:
        journal = asyncio.run(serve())
    except asyncio.CancelledError:
        _say("interrupted; the same command goes on from here")
        return 130
    broken = journal.broken()
    for sentence in broken:
        print(f"broken: {sentence}", file=sys.stderr)
    if broken:
        print(f"logs: {args.folder / str(args.seed)}", file=sys.stderr)
    print(json.dumps(journal.report(args.seed)))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
