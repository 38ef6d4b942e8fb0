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
                Phase::Booting | Phase::Running => {}
            }
            prop_assert_eq!(matches!(next.phase, Phase::Ended(_)) && next != state, matches!(action, Action::End(_)));
            state = next;
        }
    }
}
