//! Watches over Tor's health, and begins anew with a fresh Arti when that helps.
//!
//! Arti waits ever longer before it tries a guard, a bridge or a directory cache
//! again: as long as the trouble has lasted, and longer. It also gives its directory
//! up for good after enough failures. A fresh client remembers its guards, and
//! none of these waits.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use arti_client::status::BlockageKind;
use arti_client::{DormantMode, ErrorKind, HasKind};
use rand::seq::IteratorRandom;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tor_chanmgr::ChannelUsage;
use tor_dircommon::fallback::FallbackList;
use tor_guardmgr::bridge::BridgeConfig;
use tor_linkspec::OwnedChanTarget;
use tor_netdir::Timeliness;
use tor_rtcompat::NetStreamProvider;

use crate::health::{Directory, Signs, judge};
use crate::{Client, TorError, Trouble};

/// How often the signs are read. Arti ends the process 5 s after it has found itself
/// obsolete; an orderly end must have begun, and ended, before.
const TICK: Duration = Duration::from_secs(1);

/// A clock that goes on by this much more or less than time does was set, or the machine slept.
const JUMP: Duration = Duration::from_secs(15);

/// First wait for Arti to get over its trouble; then twice as long each time.
const RENEW_FIRST: Duration = Duration::from_secs(45);

/// Longest time between two fresh starts.
const RENEW_MAX: Duration = Duration::from_secs(600);

/// So long after a jump, or a relay was reached again, or a missing transport has appeared, Arti is replaced as soon as somebody waits for it in vain: its
/// connections may be dead, and its waits void.
const AFTER_JUMP: Duration = Duration::from_secs(60);

/// In vain means this long.
const STALE: Duration = Duration::from_secs(5);

/// One trouble has become another if it looks so for this long.
const SETTLED: Duration = Duration::from_secs(10);

/// A relay that was heard so lately may carry somebody's tunnel: Arti is not replaced then.
const SILENCE: Duration = Duration::from_secs(20);

/// The trouble of the moment, and what is to be done next about it.
struct Spell {
    trouble: Trouble,
    /// What it seems to have become, and since when.
    next: Option<(Trouble, Instant)>,
    since: Instant,
    wait: Duration,
    renew_at: Instant,
}

/// Longest wait for a relay to take a connection. A lost packet is sent again after 1 s.
const REACH_WAIT: Duration = Duration::from_secs(3);

/// Between two questions to a relay about the clock.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Longest wait for the answer.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// Without a directory Arti is as far as this once a relay has proved to be one.
const CONNECTED: f32 = 0.149;

/// Tor's relays, or the way to them, are gone if none was heard for so long.
const LONG_SILENCE: Duration = Duration::from_secs(120);

impl Client {
    /// Reads Tor's health once a second, as long as it is polled. Says in the log when it changes, with what to do;
    /// [`Client::trouble`] has it, too. Begins anew with a fresh Arti while trouble lasts; an
    /// [onion service](crate::OnionService) is then [lost](crate::OnionService::lost).
    ///
    /// Ends only when the network no longer takes this Arti ([`TorError::Obsolete`]): then
    /// the process must end within 4 s, or Arti will end it.
    pub async fn watch(&self) -> TorError {
        // By itself, since the other one waits for relays now and then.
        tokio::select! {
            end = self.until_obsolete() => end,
            end = self.look_after() => end,
        }
    }

    async fn until_obsolete(&self) -> TorError {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_obsolete() {
            ticks.tick().await;
        }
        self.tell(Some(Trouble::Obsolete));
        TorError::Obsolete
    }

    /// Ends as [`Client::watch`] does.
    async fn look_after(&self) -> TorError {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut spell: Option<Spell> = None;
        let mut clocks = (SystemTime::now(), Instant::now());
        let (mut jumped, mut lacking) = (None::<Instant>, false);
        let (mut clock_wrong, mut asked) = (false, None::<Instant>);
        let mut renewed = None;
        let mut directory = Directory::None;
        // A relay that can be reached is news once, and again after it could not.
        let (mut news, mut looked) = (true, None);
        // Why there is no Arti, as it was told.
        let mut in_the_way = None;
        loop {
            ticks.tick().await;
            if spell.is_none() || !self.heard_nothing_for(SILENCE) {
                self.pulse.forget(Instant::now());
            }
            if let Some(by) = jump(&mut clocks) {
                tracing::info!(
                    "Tor: slept: the machine slept, or its clock was set ({} s); looking at everything anew",
                    by.as_secs()
                );
                jumped = Some(Instant::now());
                self.poke();
                self.sleeps.send_modify(|n| *n += 1);
            }
            let mut signs = self.signs();
            // Arti believes in a connection long after it has died.
            let deaf = signs.is_stuck() && self.heard_nothing_for(SILENCE);
            let fresh = renewed.is_some_and(|at: Instant| at.elapsed() < RENEW_FIRST);
            let mut reached = false;
            let rested = looked.is_none_or(|at: Instant| at.elapsed() >= RENEW_FIRST);
            if signs.no_route || deaf && !fresh && (news || rested) {
                looked = Some(Instant::now());
                let answers = self.reaches_a_relay().await;
                reached = answers && news;
                news = !answers;
            }
            if deaf {
                signs = self.signs();
            }
            if !signs.is_puzzling() {
                (clock_wrong, asked) = (false, None);
            } else if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                clock_wrong = self.relay_contradicts_clock().await;
                asked = Some(Instant::now());
            }
            signs.thinks_clock |= clock_wrong;
            if std::mem::replace(&mut lacking, signs.no_transport) && !lacking {
                jumped = Some(Instant::now());
            }
            let verdict = judge(&signs);
            match (&mut spell, verdict) {
                // An old error is no new trouble: perhaps nobody has tried since.
                (Some(_), Some(Trouble::CircuitsFailing)) => {}
                (Some(now), Some(trouble)) if now.trouble != trouble => {
                    // While it passes, the signs contradict each other for moments.
                    let (next, since) = now.next.get_or_insert((trouble, Instant::now()));
                    if *next != trouble {
                        now.next = None;
                    } else if since.elapsed() >= SETTLED {
                        now.trouble = trouble;
                        self.tell(verdict);
                    }
                }
                (Some(now), Some(_)) => now.next = None,
                (None, Some(trouble)) => {
                    self.tell(verdict);
                    spell = Some(Spell {
                        trouble,
                        next: None,
                        since: Instant::now(),
                        wait: RENEW_FIRST,
                        renew_at: Instant::now() + RENEW_FIRST,
                    });
                }
                // It is over when somebody got what they waited for, not when the signs are mixed.
                (Some(past), None) if signs.waited.is_none() => {
                    tracing::info!(
                        "Tor: working again, after {} s of {}",
                        past.since.elapsed().as_secs(),
                        past.trouble.name()
                    );
                    self.tell(None);
                    spell = None;
                    news = true;
                }
                _ => {}
            }
            let changed = jumped.is_some_and(|at| at.elapsed() < AFTER_JUMP)
                && signs.waited.is_some_and(|waited| waited > STALE);
            let due = spell.as_ref().is_some_and(|s| Instant::now() >= s.renew_at);
            if reached {
                // Not at once: Arti's own connections may be alive again, and tunnels with them.
                jumped = Some(Instant::now());
            }
            // Arti's manager of vanguards has died with the old directory.
            let expired = std::mem::replace(&mut directory, signs.directory);
            let revived = expired == Directory::Expired && directory == Directory::Timely;
            let lacking_arti =
                self.arti().is_none() && renewed.is_none_or(|at: Instant| at.elapsed() >= STALE);
            if lacking_arti || revived || (changed || due) && self.heard_nothing_for(SILENCE) {
                jumped = None;
                renewed = Some(Instant::now());
                match self.renew().await {
                    Ok(()) => in_the_way = None,
                    Err(TorError::Obsolete) => {
                        self.tell(Some(Trouble::Obsolete));
                        return TorError::Obsolete;
                    }
                    Err(e) => {
                        let why = format!("{e}; {}", e.hint());
                        if in_the_way.as_ref() != Some(&why) {
                            tracing::warn!(
                                "[{}] Tor: tor-local: {why}; kite tries again",
                                e.kite_code()
                            );
                        }
                        in_the_way = Some(why);
                    }
                }
                if let Some(now) = &mut spell {
                    now.wait = match changed {
                        true => RENEW_FIRST,
                        false => (now.wait * 2).min(RENEW_MAX),
                    };
                    now.renew_at = Instant::now() + now.wait;
                }
            } else if due && let Some(now) = &mut spell {
                now.renew_at = Instant::now() + RENEW_FIRST;
                self.poke();
            }
        }
    }

    /// Makes Arti's last connection once more, and drops it. Arti itself would leave the relay alone for minutes
    /// after a failure, or wait as long for an answer through a connection that is dead.
    async fn reaches_a_relay(&self) -> bool {
        let Some(relay) = self.ledger.wanted() else {
            return false;
        };
        if relay.ip().is_loopback() {
            // A transport on this machine always answers.
            return false;
        }
        let options = Default::default();
        let again = self.maker.gate().connect(&relay, &options);
        matches!(timeout(REACH_WAIT, again).await, Ok(Ok(_)))
    }

    /// Asks a relay for a channel, as Arti does, and hears whether its certificates are of this time. Arti knows
    /// that, too, and does not say.
    async fn relay_contradicts_clock(&self) -> bool {
        let Some(channels) = self.arti().and_then(|arti| arti.chanmgr().ok()) else {
            return false;
        };
        let Some(relay) = self.some_relay() else {
            return false;
        };
        let channel = channels.get_or_launch(&relay, ChannelUsage::Dir);
        match timeout(ASK_WAIT, channel).await {
            Ok(Err(error)) => error.kind() == ErrorKind::ClockSkew,
            _ => false,
        }
    }

    fn some_relay(&self) -> Option<OwnedChanTarget> {
        let mut rng = rand::rng();
        let bridges: &[BridgeConfig] = self.config.as_ref();
        let caches: &FallbackList = self.config.as_ref();
        if self.bridges {
            let bridge = bridges.iter().choose(&mut rng)?;
            return Some(OwnedChanTarget::from_chan_target(bridge));
        }
        let cache = caches.iter().choose(&mut rng)?;
        Some(OwnedChanTarget::from_chan_target(cache))
    }

    fn tell(&self, trouble: Option<Trouble>) {
        if let Some(trouble) = trouble {
            tracing::warn!(
                "[{}] Tor: {}: {trouble}; {}",
                trouble.kite_code(),
                trouble.name(),
                trouble.remedy()
            );
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn signs(&self) -> Signs {
        let (waited, failures, error) = self.pulse.read();
        let (failed, no_route) = self.ledger.attempts();
        let mut signs = Signs {
            silent: self.heard_nothing_for(LONG_SILENCE),
            waited,
            failures,
            error,
            failed,
            no_route,
            bridges: self.bridges,
            before_release: SystemTime::now() < released(),
            no_transport: !self.transports.iter().all(|p| is_program(p)),
            ..Signs::default()
        };
        let Some(arti) = self.arti() else {
            return signs;
        };
        let status = arti.bootstrap_status();
        match status.blocked().map(|b| b.kind()) {
            Some(BlockageKind::ClockSkewed) => signs.thinks_clock = true,
            Some(BlockageKind::Filtering) => signs.thinks_filtered = true,
            Some(BlockageKind::CantBootstrap) => signs.thinks_directory = true,
            _ => {}
        }
        if let Ok(circuits) = arti.circmgr()
            && let Some(skew) = circuits.skew_events().get()
        {
            signs.thinks_clock |= skew.noteworthy();
        }
        if let Ok(directory) = arti.dirmgr() {
            signs.directory = match directory.netdir(Timeliness::Timely) {
                Ok(_) => Directory::Timely,
                Err(tor_netdir::Error::DirExpired) => Directory::Expired,
                Err(tor_netdir::Error::DirNotYetValid) => Directory::Early,
                Err(_) => Directory::None,
            };
        }
        let connected = match signs.directory {
            Directory::None => status.as_frac() >= CONNECTED,
            Directory::Timely => status.ready_for_traffic(),
            Directory::Expired | Directory::Early => true,
        };
        signs.no_handshake = !connected && failed == 0 && self.ledger.taken();
        signs
    }

    /// Ends the waits of Arti's periodic tasks, its directory's above all.
    fn poke(&self) {
        if let Some(arti) = self.arti() {
            arti.set_dormant(DormantMode::Soft);
            arti.set_dormant(DormantMode::Normal);
        }
    }

    /// Asks what Arti's own watcher asks before it ends the process.
    fn is_obsolete(&self) -> bool {
        let Some(directory) = self.arti().and_then(|arti| arti.dirmgr().ok()) else {
            return false;
        };
        match directory.protocol_statuses() {
            Some((date, demands)) if date >= released() => demands
                .client()
                .check_protocols(&supported())
                .is_err_and(|e| e.should_shutdown()),
            _ => false,
        }
    }
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// By how much clock and time have parted, or the process stood still, since the last look.
fn jump(clocks: &mut (SystemTime, Instant)) -> Option<Duration> {
    let (wall, time) = std::mem::replace(clocks, (SystemTime::now(), Instant::now()));
    let passed = clocks.1.duration_since(time);
    let parted = match clocks.0.duration_since(wall) {
        Ok(forward) => forward.abs_diff(passed),
        Err(back) => back.duration() + passed,
    };
    let by = parted.max(passed.saturating_sub(TICK));
    (by > JUMP).then_some(by)
}

/// The day of Arti 0.47: demands of an older directory do not concern it.
fn released() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_812_800)
}

/// What `arti_client` says that it supports, from the same parts: it keeps the sum to itself.
fn supported() -> tor_protover::Protocols {
    use tor_protover::named;
    tor_proto::supported_client_protocols()
        .union(&tor_netdoc::supported_protocols())
        .union(&tor_dirmgr::supported_client_protocols())
        .union(&tor_hsservice::supported_hsservice_protocols())
        .union(&tor_hsclient::supported_hsclient_protocols())
        .union(
            &[
                named::HSINTRO_V3,
                named::HSINTRO_RATELIM,
                named::HSREND_V3,
                named::HSDIR_V3,
            ]
            .into_iter()
            .collect(),
        )
}
