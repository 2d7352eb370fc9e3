"""The rules about memory accesses of one VM: made into what compiled code reads (records.py), and counted there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvmfs.abi.limits import KVM_MAX_VCPU_IDS
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.block import Block
from kvmfs.kvm.inject import records
from kvmfs.kvm.inject.rules import ACCESSES, DELAY, KINDS, Rule
from kvmfs.kvm.native import Native
from kvmfs.kvm.publish import Publisher
from kvmfs.kvm.words import Vm

_WHAT: Final = {
    "memory-fault": mmu.INJECT_MEMORY_FAULT,
    "other-kind": mmu.INJECT_OTHER_KIND,
    "hwpoison": mmu.INJECT_POISON,
    "efault": mmu.INJECT_EFAULT,
    DELAY: records.DELAY,
}


class _Compiled:
    """A rule in memory that compiled code reads, and counts in."""

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self._ranges = Block(max(16 * len(rule.ranges), 16))
        for index, (first, end) in enumerate(rule.ranges):
            self._ranges[16 * index], self._ranges[16 * index + 8] = first, end
        self._vcpus = Block(KVM_MAX_VCPU_IDS // 8)
        for vcpu in rule.vcpus:
            self._vcpus[vcpu // 64 * 8] |= 1 << vcpu % 64
        self._words = Block(records.Rule.SIZE)
        when, at = rule.when, records.Rule
        for offset, value in (
            (at.NUMBER, number),
            (at.WHAT, _WHAT[rule.do]),
            (at.RANGES, self._ranges.address),
            (at.RANGE_COUNT, len(rule.ranges)),
            (at.VCPUS, self._vcpus.address if rule.vcpus else 0),
            (at.ACCESSES, sum(1 << ACCESSES.index(name) for name in rule.accesses)),
            (at.KINDS, sum(1 << KINDS.index(name) for name in rule.kinds)),
            (at.AFTER, when.after),
            (at.EVERY, when.every),
            (at.TIMES, when.times),
            (at.CHANCE, when.chance),
            (at.SEED, when.seed),
            (at.DELAY, rule.delay),
        ):
            self._words[offset] = value

    @property
    def address(self) -> int:
        return self._words.address

    @property
    def counts(self) -> tuple[int, int]:
        return self._words[records.Rule.MATCHED], self._words[records.Rule.FIRED]


class MemoryRules:
    """Changes are made under the VM's slots lock: a vCPU that runs obeys them when the call returns."""

    def __init__(self, block: Block, native: Native, publisher: Publisher) -> None:
        self._block, self._native, self._publisher = block, native, publisher
        self._rules: list[_Compiled] = []
        self._table: Block | None = None

    def add(self, rules: Iterable[tuple[int, Rule]]) -> None:
        """Rules with their numbers, tried in this order after those that are there; others than memory's are left."""
        new = [_Compiled(number, rule) for number, rule in rules if rule.is_about_memory]
        if new:
            self._publish(self._rules + new)

    def clear(self) -> None:
        if self._rules:
            self._publish([])

    def counts(self) -> dict[int, tuple[int, int]]:
        """Matches and fires by number."""
        return {rule.number: rule.counts for rule in self._rules}

    def _publish(self, rules: list[_Compiled]) -> None:
        table = Block(records.Table.RULES + 8 * max(len(rules), 1))
        table[records.Table.COUNT] = len(rules)
        for index, rule in enumerate(rules):
            table[records.Table.RULES + 8 * index] = rule.address
        before = self._table, self._rules
        self._table, self._rules = table, rules
        self._block[Vm.RULES] = table.address
        self._block[mmu.INJECT] = self._native.address("inject_access") if rules else 0
        self._publisher.flush()  # no vCPU has a translation from before, or looks at the old table
        del before
