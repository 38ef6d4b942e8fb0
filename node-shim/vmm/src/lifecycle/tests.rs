use proptest::prelude::*;

use super::*;

const LATE: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_secs(1);

fn at(phase: Phase) -> VmState {
    VmState { phase, early_resets: 0 }
}

fn crash() -> Event {
    Event::Crashed("x".to_owned())
}

#[test]
fn every_transition() {
    use Action::{End, None as Nothing, PressPowerButton, Report, Restart};
    use ExitReason::{ForcedOff, GuestCrashed, GuestHung, GuestPanicked, PoweredOff};
    use Phase::{Booting, Ended, PoweringOff, Running};
    let table = [
        (Booting, Event::DriverReady, Running, Report),
        (Booting, Event::StopRequested, PoweringOff, PressPowerButton),
        (Booting, Event::GraceExpired, Booting, Nothing),
        (Booting, Event::GuestPowerOff, Ended(PoweredOff), End(PoweredOff)),
        (Booting, Event::GuestReset, Booting, Restart),
        (Booting, Event::TripleFault, Booting, Restart),
        (Booting, crash(), Ended(GuestCrashed), End(GuestCrashed)),
        (Booting, Event::Panicked, Ended(GuestPanicked), End(GuestPanicked)),
        (Booting, Event::WatchdogExpired, Ended(GuestHung), End(GuestHung)),
        (Running, Event::DriverReady, Running, Nothing),
        (Running, Event::StopRequested, PoweringOff, PressPowerButton),
        (Running, Event::GraceExpired, Running, Nothing),
        (Running, Event::GuestPowerOff, Ended(PoweredOff), End(PoweredOff)),
        (Running, Event::GuestReset, Booting, Restart),
        (Running, Event::TripleFault, Booting, Restart),
        (Running, crash(), Ended(GuestCrashed), End(GuestCrashed)),
        (Running, Event::Panicked, Ended(GuestPanicked), End(GuestPanicked)),
        (Running, Event::WatchdogExpired, Ended(GuestHung), End(GuestHung)),
        (PoweringOff, Event::DriverReady, PoweringOff, Nothing),
        (PoweringOff, Event::StopRequested, PoweringOff, Nothing),
        (PoweringOff, Event::GraceExpired, Ended(ForcedOff), End(ForcedOff)),
        (PoweringOff, Event::GuestPowerOff, Ended(PoweredOff), End(PoweredOff)),
        (PoweringOff, Event::GuestReset, Ended(PoweredOff), End(PoweredOff)),
        (PoweringOff, Event::TripleFault, Ended(PoweredOff), End(PoweredOff)),
        (PoweringOff, crash(), Ended(GuestCrashed), End(GuestCrashed)),
        (PoweringOff, Event::Panicked, Ended(GuestPanicked), End(GuestPanicked)),
        (PoweringOff, Event::WatchdogExpired, Ended(GuestHung), End(GuestHung)),
        (Ended(ForcedOff), Event::GuestPowerOff, Ended(ForcedOff), Nothing),
        (Ended(ForcedOff), Event::GuestReset, Ended(ForcedOff), Nothing),
        (Ended(ForcedOff), crash(), Ended(ForcedOff), Nothing),
        (Ended(ForcedOff), Event::Panicked, Ended(ForcedOff), Nothing),
        (Ended(ForcedOff), Event::WatchdogExpired, Ended(ForcedOff), Nothing),
    ];
    for (phase, event, next, action) in table {
        assert_eq!(at(phase).on(&event, LATE), (at(next), action), "{phase:?} on {event:?}");
    }
}

fn paused(booted: bool) -> Phase {
    Phase::Paused { booted }
}

fn saving(booted: bool, then: AfterSaving) -> Phase {
    Phase::Saving { booted, then }
}

#[test]
fn every_transition_of_a_vm_that_is_paused_or_asked_for() {
    use Action::{None as Nothing, Pause, Refuse, Report, Restart, Resume, ResumeAndPressPowerButton};
    use Phase::{Booting, Ended, PoweringOff, Running};
    let off = ExitReason::ForcedOff;
    let table = [
        (Booting, Event::PauseRequested, paused(false), Pause),
        (Running, Event::PauseRequested, paused(true), Pause),
        (paused(true), Event::PauseRequested, paused(true), Nothing),
        (
            PoweringOff,
            Event::PauseRequested,
            PoweringOff,
            Refuse(Refusal::PoweringOff),
        ),
        (paused(false), Event::ResumeRequested, Booting, Resume),
        (paused(true), Event::ResumeRequested, Running, Resume),
        (Running, Event::ResumeRequested, Running, Nothing),
        (PoweringOff, Event::ResumeRequested, PoweringOff, Nothing),
        (
            paused(true),
            Event::StopRequested,
            PoweringOff,
            ResumeAndPressPowerButton,
        ),
        (paused(true), Event::GraceExpired, paused(true), Nothing),
        (paused(false), Event::DriverReady, paused(true), Report),
        (paused(true), Event::OffRequested, Ended(off), Action::End(off)),
        (Running, Event::OffRequested, Ended(off), Action::End(off)),
        (PoweringOff, Event::OffRequested, Ended(off), Action::End(off)),
        (Running, Event::ResetRequested, Booting, Restart),
        (
            paused(true),
            Event::ResetRequested,
            paused(true),
            Refuse(Refusal::Paused),
        ),
        (
            PoweringOff,
            Event::ResetRequested,
            PoweringOff,
            Refuse(Refusal::PoweringOff),
        ),
        (Ended(off), Event::ResetRequested, Ended(off), Nothing),
    ];
    for (phase, event, next, action) in table {
        assert_eq!(at(phase).on(&event, LATE), (at(next), action), "{phase:?} on {event:?}");
    }
}

#[test]
fn every_transition_of_a_vm_that_is_saved() {
    use Action::{None as Nothing, Refuse, Resume, ResumeAndPressPowerButton, Save};
    use AfterSaving::{PowerOff, StayPaused};
    use Phase::{Booting, PoweringOff, Running};
    let snapshot = |stay_paused| Event::SnapshotRequested { stay_paused };
    let busy = Refuse(Refusal::Saving);
    let (resume, stay, power_off) = (
        saving(true, AfterSaving::Resume),
        saving(true, StayPaused),
        saving(true, PowerOff),
    );
    let table = [
        (Booting, snapshot(false), saving(false, AfterSaving::Resume), Save),
        (Running, snapshot(false), resume, Save),
        (Running, snapshot(true), stay, Save),
        (paused(true), snapshot(false), stay, Save),
        (resume, snapshot(false), resume, busy),
        (PoweringOff, snapshot(false), PoweringOff, Refuse(Refusal::PoweringOff)),
        (resume, Event::PauseRequested, resume, busy),
        (stay, Event::ResumeRequested, stay, busy),
        (resume, Event::OffRequested, resume, busy),
        (resume, Event::ResetRequested, resume, busy),
        (
            saving(false, AfterSaving::Resume),
            Event::SnapshotEnded,
            Booting,
            Resume,
        ),
        (resume, Event::SnapshotEnded, Running, Resume),
        (stay, Event::SnapshotEnded, paused(true), Nothing),
        (power_off, Event::SnapshotEnded, PoweringOff, ResumeAndPressPowerButton),
        (Running, Event::SnapshotEnded, Running, Nothing),
        (resume, Event::StopRequested, power_off, Nothing),
        (stay, Event::StopRequested, power_off, Nothing),
    ];
    for (phase, event, next, action) in table {
        assert_eq!(at(phase).on(&event, LATE), (at(next), action), "{phase:?} on {event:?}");
    }
}

#[test]
fn early_resets_in_a_row_are_a_crash() {
    for event in [Event::TripleFault, Event::GuestReset] {
        let mut state = VmState::new();
        for _ in 0..EARLY_RESETS_MAX - 1 {
            let (next, action) = state.on(&event, SOON);
            assert_eq!(action, Action::Restart);
            state = next;
        }
        assert_eq!(state.on(&event, SOON).1, Action::End(ExitReason::GuestCrashed));
    }
}

#[test]
fn a_guest_that_came_up_may_reset_as_often_as_it_likes() {
    let mut state = VmState::new();
    for _ in 0..100 {
        state = state.on(&Event::DriverReady, SOON).0;
        let (next, action) = state.on(&Event::TripleFault, SOON);
        assert_eq!(action, Action::Restart);
        state = next;
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::DriverReady),
        Just(Event::StopRequested),
        Just(Event::GraceExpired),
        Just(Event::GuestPowerOff),
        Just(Event::GuestReset),
        Just(Event::TripleFault),
        Just(crash()),
        Just(Event::PauseRequested),
        Just(Event::ResumeRequested),
        any::<bool>().prop_map(|stay_paused| Event::SnapshotRequested { stay_paused }),
        Just(Event::SnapshotEnded),
        Just(Event::OffRequested),
        Just(Event::ResetRequested),
    ]
}

proptest! {
    #[test]
    fn an_end_is_final_and_a_stop_is_never_forgotten(
        events in prop::collection::vec((any_event(), 0_u64..20), 0..64)
    ) {
        let mut state = VmState::new();
        for (event, uptime) in events {
            let (next, action) = state.on(&event, Duration::from_secs(uptime));
            match state.phase {
                Phase::Ended(_) => prop_assert_eq!((next, action), (state, Action::None)),
                Phase::PoweringOff => prop_assert!(
                    matches!(next.phase, Phase::PoweringOff | Phase::Ended(_)),
                    "{:?} on {:?}", next, event
                ),
                Phase::Saving { then: AfterSaving::PowerOff, .. } => prop_assert!(
                    matches!(
                        next.phase,
                        Phase::Saving { then: AfterSaving::PowerOff, .. } | Phase::PoweringOff | Phase::Ended(_) | Phase::Booting
                    ),
                    "{:?} on {:?}", next, event
                ),
                Phase::Booting | Phase::Running | Phase::Paused { .. } | Phase::Saving { .. } => {}
            }
            // vCPUs start and stop only together with the state that says so.
            let still = |state: VmState| matches!(state.phase, Phase::Paused { .. } | Phase::Saving { .. });
            match action {
                Action::Pause => prop_assert!(!still(state) && still(next)),
                Action::Save => prop_assert!(still(next)),
                Action::Resume | Action::ResumeAndPressPowerButton => prop_assert!(still(state) && !still(next)),
                Action::Restart | Action::End(_) => prop_assert!(!still(next)),
                Action::None | Action::Report | Action::PressPowerButton | Action::Refuse(_) => {
                    prop_assert_eq!(still(state), still(next));
                }
            }
            prop_assert_eq!(matches!(next.phase, Phase::Ended(_)) && next != state, matches!(action, Action::End(_)));
            state = next;
        }
    }
}
