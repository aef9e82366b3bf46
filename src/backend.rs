//! The hidden side: keeps a tunnel to every frontend, and passes its streams on to
//! the origin once they have shown that they are what the kite is for.
//!
//! This room is handed one [`Dialer`] and asks it for everything: it cannot tell
//! Tor from direct, and has no way of its own to open a connection to a frontend.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as signal;
use tokio::task::JoinSet;

mod flight;
mod homes;
pub mod introduce;
pub mod join;
mod keys;
mod later;
mod link;
pub mod policy;
pub mod probe;
mod report;
mod siblings;
mod stream;
pub mod watch;

use self::homes::Homes;
use self::keys::Keys;
pub use self::later::MAX_ASKED;
use self::link::{Base, Link, Services};
use self::siblings::Siblings;
pub use self::stream::FIRST_FLIGHT_TIMEOUT;
use self::watch::Watch;
use crate::code::Code;
use crate::config::{Frontend, Service};
use crate::dial::{Dialer, FrontendAddr, Lane, Trust};
use crate::observe::board::{Board, kite_of};
use crate::random::random_key;
use crate::shutdown::{self, Shutdown, Trigger};
use crate::tunnel::buffer::Pool;
use crate::wire::mark::MarkKey;

/// The first wait before a frontend is dialled again.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// The longest wait after a frontend refused all kites: that is for people to mend.
pub const RETRY_REFUSED: Duration = Duration::from_secs(120);
/// A tunnel that lived this long was a success: waits begin anew after it.
pub const LIVED: Duration = Duration::from_secs(5);
/// A frontend that refuses connections just after a tunnel to it was lost is being restarted: for [`QUICK_FOR`] the wait
/// is this long at most.
pub const RETRY_QUICK: Duration = Duration::from_millis(250);
/// See [`RETRY_QUICK`].
pub const QUICK_FOR: Duration = Duration::from_secs(10);
/// How long a frontend may take from our request to its verdict. Over Tor each of
/// the round trips can take seconds.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where to fly what.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The frontends to keep tunnels to.
    pub frontends: Vec<Frontend>,
    /// The kites.
    pub services: Vec<Service>,
}

impl Plan {
    /// The frontends where a kite is to fly, by their addresses.
    pub fn places_of(&self, kite: &str) -> Vec<String> {
        let service = self.services.iter().find(|s| kite_of(s) == kite);
        let Some(service) = service else {
            return Vec::new();
        };
        let is_for = |f: &&Frontend| {
            let names = f.kites.as_ref();
            names.is_none_or(|names| names.contains(&service.name))
        };
        let places = self.frontends.iter().filter(is_for);
        places.map(|f| f.address.to_string()).collect()
    }

    /// One that never changes.
    pub fn fixed(frontends: Vec<Frontend>, services: Vec<Service>) -> signal::Receiver<Self> {
        signal::channel(Self {
            frontends,
            services,
        })
        .1
    }
}

/// Keeps tunnels to each frontend of the plan until `shutdown`, and writes on `board` how they are.
///
/// When the plan changes, what is the same in it goes on undisturbed. A frontend whose kites have changed gets
/// another tunnel beside the old one, which ends with its streams. Streams end with their kite, or their frontend.
/// How many tunnels a frontend has is not changed.
pub async fn run(
    mut plans: signal::Receiver<Plan>,
    dialer: Arc<dyn Dialer>,
    board: Board,
    shutdown: Shutdown,
) {
    let watch = Arc::new(Watch::new(&[], board.clone()));
    let pool = Pool::new();
    let base = Base {
        dialer,
        watch,
        noise: Arc::default(),
        keys: Arc::new(Keys::default()),
        board,
        pool,
        drain: shutdown.drain(),
        homes: Homes::default(),
        mark: MarkKey::new(random_key()),
    };
    let mut said = base.homes.subscribe();
    let onions = base.dialer.reaches_onions();
    let mut posts = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        let plan = plans.borrow_and_update().clone();
        base.watch.turn_to(&plan.services);
        base.keys.turn_to(&plan.services);
        said.mark_unchanged();
        let plan = base.homes.complete(plan, onions);
        posts = station(posts, &plan, &base, &mut tasks);
        tokio::select! {
            () = shutdown.requested() => break,
            Ok(()) = plans.changed() => {}
            Ok(()) = said.changed() => {}
        }
    }
    // Each post hears the order to stop.
    drop(posts);
    while tasks.join_next().await.is_some() {}
}

/// The tunnels to one frontend.
struct Post {
    address: FrontendAddr,
    services: signal::Sender<Services>,
    /// Dropped, it is the order to stop.
    _stop: Trigger,
}

/// A post for each frontend of the plan: one that is there already, or a new one. The others are given up.
fn station(mut old: Vec<Post>, plan: &Plan, base: &Base, tasks: &mut JoinSet<()>) -> Vec<Post> {
    let place = |frontend: &Frontend| {
        let flown = plan.services.iter().filter(|s| {
            let names = frontend.kites.as_ref();
            names.is_none_or(|names| names.contains(&s.name))
        });
        let flown: Services = Arc::new(flown.cloned().collect());
        match old.iter().position(|p| p.address == frontend.address) {
            Some(at) => {
                let post = old.swap_remove(at);
                post.services.send_replace(flown);
                post
            }
            None => Post::open(frontend, flown, base, tasks),
        }
    };
    plan.frontends.iter().map(place).collect()
}

impl Post {
    fn open(frontend: &Frontend, flown: Services, base: &Base, tasks: &mut JoinSet<()>) -> Self {
        let address = &frontend.address;
        if *address.trust() == Trust::Plain {
            tracing::warn!(
                "[{}] frontend {address}: plain:// is not protected; whoever carries the connection can take the kite \
                 over; give its pinned address or its onion name, if it has one",
                Code::PlainFrontend
            );
        }
        let (services, wishes) = signal::channel(flown);
        let (stop, order) = shutdown::channel();
        let siblings = Arc::new(Siblings::new());
        for lane in (0..frontend.tunnels).map(Lane) {
            let link = Link::new(
                base,
                address.clone(),
                lane,
                wishes.clone(),
                siblings.clone(),
            );
            tasks.spawn(link.keep(order.clone().within(base.drain)));
        }
        Self {
            address: address.clone(),
            services,
            _stop: stop,
        }
    }
}
