//! A filter that looks only at a system call's number, by a binary search.
//!
//! The lists' own filters ask for one number after the other. The kernel tries each filter with every number there is when it is installed
//! (kernel/seccomp.c, `seccomp_cache_prepare_bitmap`), but only with numbers that earlier filters always allow: with this one first, the long
//! one after it is installed in a third of the time.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h): `EM_X86_64` of 64 bits, little-endian.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Of `nr` and `arch` in `seccomp_data` (include/uapi/linux/seccomp.h).
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_IF_NOT_BELOW: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Numbers from `first` up to the next span's first, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    action: u32,
}

/// Makes the filter: `actions` for these numbers, `otherwise` for all others.
pub(super) fn program(actions: &BTreeMap<u32, u32>, otherwise: u32) -> BpfProgram {
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE_OFFSET, 0, 0),
        instruction(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        instruction(LOAD, NUMBER_OFFSET, 0, 0),
    ];
    program.extend(search(&spans(actions, otherwise)));
    program
}

/// All numbers there are, from 0 up.
fn spans(actions: &BTreeMap<u32, u32>, otherwise: u32) -> Vec<Span> {
    let mut spans = vec![Span {
        first: 0,
        action: otherwise,
    }];
    let mut begin = |first, action| match spans.last_mut() {
        Some(last) if last.first == first => last.action = action,
        Some(last) if last.action == action => {}
        _ => spans.push(Span { first, action }),
    };
    for (number, action) in actions {
        begin(*number, *action);
        begin(number + 1, otherwise);
    }
    spans
}

fn search(spans: &[Span]) -> BpfProgram {
    let (below, from) = spans.split_at(spans.len() / 2);
    let (Some(_), Some(middle)) = (below.first(), from.first()) else {
        return spans
            .iter()
            .map(|span| instruction(RETURN, span.action, 0, 0))
            .collect();
    };
    let lower = search(below);
    // A conditional jump has eight bits only.
    let over_lower = u32::try_from(lower.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        instruction(JUMP_IF_NOT_BELOW, middle.first, 0, 1),
        instruction(JUMP, over_lower, 0, 0),
    ];
    program.extend(lower);
    program.extend(search(from));
    program
}

#[allow(clippy::cast_possible_truncation, reason = "codes of instructions have 16 bits")]
const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter answers: the instructions that it is made of, as the kernel runs them.
    fn answer(program: &BpfProgram, number: u32, architecture: u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                LOAD if k == NUMBER_OFFSET => accumulator = number,
                LOAD => accumulator = architecture,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += jump(accumulator == k),
                JUMP_IF_NOT_BELOW => at += jump(accumulator >= k),
                _ => return k,
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn every_number_has_its_action(actions in proptest::collection::btree_map(0..500_u32, 1..4_u32, 0..200), other: u32) {
            let program = program(&actions, 0);
            for number in (0..600).chain([other]) {
                let expected = actions.get(&number).copied().unwrap_or(0);
                proptest::prop_assert_eq!(answer(&program, number, ARCHITECTURE), expected);
            }
            proptest::prop_assert_eq!(answer(&program, 0, 0x4000_0003), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn a_search_is_short() {
        let actions = (0..256).map(|number| (2 * number, 1)).collect();
        let program = program(&actions, 0);
        // 512 spans: nine questions, at most two instructions each, and the answer.
        assert_eq!(program.len(), 4 + 512 + 2 * 511);
    }
}
