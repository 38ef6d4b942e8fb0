//! Which size a shim is asked for next. Pure: it is told the time.
//!
//! ```text
//! nothing asked ──ask──► Sent ──taken──► (acknowledged)
//!                         ▲ │
//!                         │ └──refused──► Refused ──a newer size──► Sent
//!                         └───a while later, where it may work another time
//! ```

use std::time::{Duration, Instant};

use node_shim_protocol::agent::{Resize, Resized};
use node_shim_protocol::control::{Failure, FailureKind};

/// First and longest pause before a size is asked for again that may work another time; it doubles.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_mins(10);

/// What was said in one conversation about sizes.
#[derive(Debug, Default)]
pub(super) struct Orders {
    asked: Option<Asked>,
    answer: Option<Answer>,
}

/// The last size that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    sequence: u64,
    state: State,
    /// Answers in a row that it may work another time.
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent,
    Taken,
    Refused { again_at: Option<Instant> },
}

/// The last answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// To which size.
    pub(super) sequence: u64,
    /// Why it was not taken.
    pub(super) refusal: Option<String>,
    /// When.
    pub(super) at: Instant,
}

/// What to do about the size that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    Ask,
    AskAt(Instant),
}

impl Orders {
    /// What to do, where the API says that the VMM has taken the size `taken`.
    pub(super) fn next(&self, wanted: &Resize, taken: Option<u64>, now: Instant) -> Next {
        if taken.is_some_and(|taken| taken >= wanted.sequence) {
            return Next::Nothing;
        }
        let Some(asked) = self.asked.filter(|asked| asked.sequence >= wanted.sequence) else {
            return Next::Ask;
        };
        match asked.state {
            // An older size is never asked for again.
            _ if asked.sequence > wanted.sequence => Next::Nothing,
            State::Sent | State::Taken | State::Refused { again_at: None } => Next::Nothing,
            State::Refused { again_at: Some(at) } if at > now => Next::AskAt(at),
            State::Refused { again_at: Some(_) } => Next::Ask,
        }
    }

    /// It is asked for.
    pub(super) fn ask(&mut self, wanted: &Resize) {
        let again = self.asked.filter(|asked| asked.sequence == wanted.sequence);
        self.asked = Some(Asked {
            sequence: wanted.sequence,
            state: State::Sent,
            failures: again.map_or(0, |asked| asked.failures),
        });
    }

    /// It was answered. An answer to a size that was overtaken says nothing of the last.
    pub(super) fn answered(&mut self, resized: &Resized, now: Instant) {
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.sequence == resized.sequence) else {
            return;
        };
        asked.state = match resized.failure.as_ref().map(|failure| failure.kind) {
            None => State::Taken,
            Some(FailureKind::Invalid) => State::Refused { again_at: None },
            Some(FailureKind::Refused | FailureKind::Failed) => {
                let pause = RETRY_FIRST * 2u32.saturating_pow(asked.failures.min(16));
                asked.failures = asked.failures.saturating_add(1);
                State::Refused {
                    again_at: Some(now + pause.min(RETRY_MAX)),
                }
            }
        };
        self.answer = Some(Answer {
            sequence: resized.sequence,
            refusal: resized.failure.as_ref().map(|Failure { message, .. }| message.clone()),
            at: now,
        });
    }

    /// The last answer.
    pub(super) const fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use node_shim_protocol::agent::{GuestState, GuestStatus};

    use super::*;

    fn size(sequence: u64) -> Resize {
        Resize {
            sequence,
            vcpus: 2,
            memory_bytes: 1 << 30,
        }
    }

    fn answer(sequence: u64, kind: Option<FailureKind>) -> Resized {
        Resized {
            sequence,
            failure: kind.map(|kind| Failure {
                kind,
                message: "no".to_owned(),
            }),
            status: GuestStatus {
                state: GuestState::Running,
                boot_time_ms: 0,
                vcpus: 2,
                memory_bytes: 1 << 30,
                resets: 0,
                kernel: None,
                hindrance: None,
                disks: Vec::new(),
            },
        }
    }

    #[test]
    fn each_size_is_asked_for_once_and_the_newest_alone() {
        let now = Instant::now();
        let asked = |sequence, state| {
            Some(Asked {
                sequence,
                state,
                failures: 0,
            })
        };
        let later = now + RETRY_FIRST;
        let table = [
            ("the first", None, None, Next::Ask),
            ("taken from another agent", None, Some(5), Next::Nothing),
            ("an older one was", None, Some(4), Next::Ask),
            ("a newer one was", None, Some(6), Next::Nothing),
            ("not answered yet", asked(5, State::Sent), None, Next::Nothing),
            ("not yet written down", asked(5, State::Taken), Some(4), Next::Nothing),
            (
                "overtakes one that is not answered",
                asked(4, State::Sent),
                None,
                Next::Ask,
            ),
            ("the watch is behind", asked(6, State::Sent), None, Next::Nothing),
            (
                "refused for good",
                asked(5, State::Refused { again_at: None }),
                None,
                Next::Nothing,
            ),
            (
                "refused for now",
                asked(5, State::Refused { again_at: Some(later) }),
                None,
                Next::AskAt(later),
            ),
            (
                "long ago",
                asked(5, State::Refused { again_at: Some(now) }),
                None,
                Next::Ask,
            ),
            (
                "an older one was refused",
                asked(4, State::Refused { again_at: Some(later) }),
                None,
                Next::Ask,
            ),
        ];
        for (name, asked, taken, expected) in table {
            let orders = Orders { asked, answer: None };
            assert_eq!(orders.next(&size(5), taken, now), expected, "{name}");
        }
    }

    #[test]
    fn what_may_work_another_time_is_tried_ever_more_slowly() {
        let mut now = Instant::now();
        let mut orders = Orders::default();
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(orders.next(&size(1), None, now), Next::Ask);
            orders.ask(&size(1));
            orders.answered(&answer(1, Some(FailureKind::Failed)), now);
            let next = now + Duration::from_secs(seconds);
            assert_eq!(orders.next(&size(1), None, now), Next::AskAt(next));
            now = next;
        }
        // Another size begins anew.
        orders.ask(&size(2));
        orders.answered(&answer(2, Some(FailureKind::Refused)), now);
        assert_eq!(orders.next(&size(2), None, now), Next::AskAt(now + RETRY_FIRST));
        orders.ask(&size(2));
        orders.answered(&answer(2, Some(FailureKind::Invalid)), now);
        assert_eq!(orders.next(&size(2), None, now), Next::Nothing);
    }

    #[test]
    fn an_answer_to_a_size_that_was_overtaken_is_not_one_to_the_last() {
        let now = Instant::now();
        let mut orders = Orders::default();
        orders.ask(&size(1));
        orders.ask(&size(2));
        orders.answered(&answer(1, None), now);
        assert_eq!(orders.answer(), None);
        orders.answered(&answer(2, None), now);
        assert_eq!(orders.answer().map(|answer| answer.sequence), Some(2));
    }
}
