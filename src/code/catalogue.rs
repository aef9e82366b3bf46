//! All codes, and what is said of each. New ones are added at the end of their letter; none is ever changed or
//! given to something else. `docs/errors.md` is made from this: `KITE_UPDATE=1 cargo test --test surface`.

use super::{Entry, Then};

macro_rules! catalogue {
    ($($name:ident = $code:literal {
        title: $title:literal,
        cause: $cause:literal,
        subject: $subject:literal,
        remedy: $remedy:literal,
        then: $then:ident,
        example: $example:literal,
    })*) => {
        /// What can be the matter. Each has an [`Entry`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code there is, in the catalogue's order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As messages show it: `KITE-F02`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// What the catalogue says of it.
            pub fn entry(self) -> Entry {
                match self {
                    $(Self::$name => Entry {
                        code: self,
                        title: $title,
                        cause: $cause,
                        subject: $subject,
                        remedy: $remedy,
                        then: Then::$then,
                        example: $example,
                    },)*
                }
            }
        }
    };
}

catalogue! {
    // ------------------------------------------------------------------- Tor
    NoNetwork = "KITE-T01" {
        title: "this machine has no network",
        cause: "There is no route to anywhere: no cable, no Wi-Fi, or a router that gives no address.",
        subject: "this machine's connection",
        remedy: "Check the cable, the Wi-Fi and the router. kite looks once a second and goes on when the network is back.",
        then: TriesAgain,
        example: "Tor: no-network: this machine has no network; check the cable, the Wi-Fi and the router; kite goes on when it is back",
    }
    TorUnreachable = "KITE-T02" {
        title: "no directory cache of Tor's can be reached",
        cause: "kite has no directory of Tor's yet, and none of the machines that hand it out can be connected to. A firewall keeps them away, the network does, or the provider's line is down.",
        subject: "the way from this machine to Tor",
        remedy: "Check this machine's network and firewall: kite must be able to open TCP connections to any address. Where Tor is blocked, configure bridges (`[bridges]` in the file that --tor-config names).",
        then: TriesAgain,
        example: "Tor: tor-unreachable: no directory cache of Tor's can be reached; check this machine's network and firewall; …",
    }
    TorBlocked = "KITE-T03" {
        title: "connections to Tor stand, and it is not Tor that answers",
        cause: "Something between here and the relays takes the connections: a login page of a Wi-Fi, a filter of the provider's or the country's, or a clock that is so wrong that no relay is believed.",
        subject: "the way from this machine to Tor",
        remedy: "Log in if this network wants that first, and check the clock. Where Tor is blocked, configure bridges (`[bridges]` in the file that --tor-config names).",
        then: TriesAgain,
        example: "Tor: tor-blocked: relays take connections, and do not answer as relays do; log in if this network wants that first, and check the clock; …",
    }
    GuardsDown = "KITE-T04" {
        title: "none of the guard relays can be reached",
        cause: "kite has Tor's directory, and the few relays that it goes through first do not answer: they are down, or the provider's line is, which looks the same from here.",
        subject: "this machine's guards",
        remedy: "Check this machine's network. kite tries the guards again, and others in time; where Tor is blocked it needs bridges.",
        then: TriesAgain,
        example: "Tor: guards-down: none of the guard relays can be reached; check this machine's network; …",
    }
    BridgeDown = "KITE-T05" {
        title: "no configured bridge can be reached",
        cause: "Bridges are configured, and none of them answers: they are gone, or blocked, or this machine has no network.",
        subject: "the bridges in Tor's configuration",
        remedy: "Check this machine's network; if that works, ask for other bridges and put them into Tor's configuration.",
        then: TriesAgain,
        example: "Tor: bridge-down: no configured bridge can be reached; check this machine's network; …",
    }
    TransportFailed = "KITE-T06" {
        title: "the pluggable transport does not run",
        cause: "The program that carries Tor's traffic to the bridge is missing, cannot be started, or ends.",
        subject: "`[[bridges.transports]]` in Tor's configuration",
        remedy: "Check its `path`, and install the program (on Debian: apt-get install obfs4proxy). If it was not there when kite started, restart kite: the sandbox knows only programs that were.",
        then: TriesAgain,
        example: "Tor: transport-failed: the pluggable transport does not run; check `path` in [[bridges.transports]] of Tor's configuration, and that the program is installed",
    }
    ClockWrong = "KITE-T07" {
        title: "this machine's clock seems to be wrong",
        cause: "Relays, Tor's directory or the date of this program contradict the clock. Tor's certificates hold for some hours only, so that it cannot work then.",
        subject: "this machine's clock",
        remedy: "Set this machine's clock and time zone, and keep it right with NTP (`timedatectl set-ntp true`). kite goes on by itself.",
        then: TriesAgain,
        example: "Tor: clock-wrong: this machine's clock seems to be wrong; set this machine's clock (and time zone), and keep it right with NTP; kite goes on by itself",
    }
    DirectoryExpired = "KITE-T08" {
        title: "Tor's directory has expired, and there is no newer one",
        cause: "The directory that is kept here is too old, and the caches have no newer one: the Tor network has trouble, or the clock is wrong.",
        subject: "Tor's directory",
        remedy: "Check this machine's clock; else wait. kite asks for a new directory at least every 45 seconds.",
        then: TriesAgain,
        example: "Tor: directory-expired: Tor's directory has expired, and there is no newer one; check this machine's clock; …",
    }
    DirectoryUnavailable = "KITE-T09" {
        title: "no usable directory of Tor's can be had",
        cause: "Directory caches answer, and what they give does not come together to a directory.",
        subject: "Tor's directory",
        remedy: "Check this machine's clock; kite goes on asking.",
        then: TriesAgain,
        example: "Tor: directory-unavailable: no usable directory of Tor's can be had; check this machine's clock; …",
    }
    CircuitsFailing = "KITE-T10" {
        title: "circuits through Tor fail",
        cause: "For a minute every circuit has failed, three times at least, and nothing shows why: an overloaded network or machine, mostly.",
        subject: "circuits through Tor",
        remedy: "Nothing, unless it lasts. Then look whether this machine or its network is slow or overloaded.",
        then: TriesAgain,
        example: "Tor: circuits-failing: circuits through Tor fail; nothing, unless it lasts; …",
    }
    TorObsolete = "KITE-T11" {
        title: "the Tor network demands a newer kite",
        cause: "Tor's signed directory requires a protocol that the Tor client within this kite does not speak.",
        subject: "this version of kite",
        remedy: "Install a newer kite. To start this one again does not help; the exit status is 3.",
        then: Ends,
        example: "tor-obsolete: the embedded Tor client is too old for today's Tor network; install a newer kite",
    }
    TorLocal = "KITE-T12" {
        title: "Tor cannot work on this machine",
        cause: "The embedded Tor client cannot use its files or settings here: no free space, no permission, a broken disk.",
        subject: "the state directory, and the settings in Tor's configuration",
        remedy: "Look for another kite with the same state directory, at the directory's permissions, and at the disk's free space.",
        then: TriesAgain,
        example: "Tor: tor-local: Tor cannot start: …; check the state directory's disk, permissions and free space; kite tries again",
    }
    TorConfig = "KITE-T13" {
        title: "Tor's configuration is of no use",
        cause: "The file that --tor-config or `tor.config` names is missing, cannot be read, or says what the embedded Tor client cannot follow.",
        subject: "the file with Arti's own settings, which the message names",
        remedy: "Check the path and its permissions, and correct what the message names. kite reads the sections of Arti's client library only.",
        then: Ends,
        example: "Tor's configuration absent.toml: No such file or directory (os error 2); check the path and its permissions",
    }
    TorInUse = "KITE-T14" {
        title: "Tor's state directory is in use by another process",
        cause: "Another kite, most likely, runs with the same state directory; two would break each other's guards.",
        subject: "the state directory",
        remedy: "Stop the other kite, or give each its own --state-dir.",
        then: Ends,
        example: "Tor's state directory is in use by another process; stop the other kite, or give each its own state_dir",
    }
    TorPermissions = "KITE-T15" {
        title: "Tor's state directory is not safe",
        cause: "Others could read or change Tor's files, or a directory above them.",
        subject: "the directory that the message names",
        remedy: "Make the state directory private (chmod 700), and let only its owner write to those above it.",
        then: Ends,
        example: "Tor's state directory is not safe: …; make the directory private (chmod 700), and let only its owner write to those above it",
    }
    TorStarting = "KITE-T16" {
        title: "Tor is not ready yet",
        cause: "Something was asked of Tor while it still starts. The first start takes 10 to 60 seconds.",
        subject: "the embedded Tor client",
        remedy: "Wait for Tor to start; the log says how far it is.",
        then: TriesAgain,
        example: "tor-starting: Tor is not ready yet (wait for Tor to start; the log says how far it is)",
    }
    OnionFailed = "KITE-T17" {
        title: "the onion service cannot start",
        cause: "Its key cannot be made or read, or the embedded Tor client refuses it.",
        subject: "this frontend's onion service",
        remedy: "Check the permissions of the state directory; the key is below it.",
        then: TriesAgain,
        example: "the onion service 'tunnels' cannot start: …; check the nickname, and the permissions of the state directory; kite goes on trying",
    }
    OnionUnpublished = "KITE-T18" {
        title: "the onion service is not published yet",
        cause: "Its descriptor, by which backends find it, has not been taken by enough relays. Tor is slow, or has trouble of its own, which another line names.",
        subject: "this frontend's onion service",
        remedy: "Wait some minutes. Backends that come through other ports are served. If it lasts, look for another line of Tor's in the log.",
        then: TriesAgain,
        example: "the onion service is not published yet (…); kite goes on trying, and backends that come through other ports are served",
    }
    DialRefused = "KITE-T19" {
        title: "a connection past Tor was stopped",
        cause: "The embedded Tor client wanted to connect to something that is no relay, and kite kept it from that. This should never happen.",
        subject: "kite itself",
        remedy: "Nothing leaked. Please report it, with the kind that the message names.",
        then: GoesOn,
        example: "kept Arti from opening a connection that is none of Tor's (…); kite stays safe, please report it",
    }

    // -------------------------------------------------------------- frontends
    FrontendUnreachable = "KITE-F01" {
        title: "a frontend cannot be reached",
        cause: "It is down, slow or firewalled, or the port is wrong. Tor's exits do not say which.",
        subject: "the frontend whose address is in the message",
        remedy: "Check the port in its address, and that the frontend runs and its port is open to everybody.",
        then: TriesAgain,
        example: "frontend alice.example:443: frontend-unreachable: it refused the connection (check the port, and that the frontend runs)",
    }
    ExitPolicy = "KITE-F02" {
        title: "Tor's exits do not go to the frontend's port",
        cause: "Most exits connect to a few ports only, and the frontend listens on another.",
        subject: "the port of the frontend whose address is in the message",
        remedy: "Let the frontend listen on 443 or 80 too, or use its onion address (its operator starts it with --onion).",
        then: TriesAgain,
        example: "frontend alice.example:4430: exit-policy: no Tor exit relay was willing to connect to its port (let the frontend listen on 443 or 80 too, or use its onion address)",
    }
    NameNotFound = "KITE-F03" {
        title: "a frontend's name was not found",
        cause: "The name server that was asked (through Tor: the exit's) does not know the name, or fails.",
        subject: "the host in the frontend's address",
        remedy: "Check the spelling of the frontend's name.",
        then: TriesAgain,
        example: "frontend alise.example:443: name-not-found: its name was not found (check the spelling of the frontend's name)",
    }
    WrongPin = "KITE-F04" {
        title: "a frontend shows another key than the one pinned",
        cause: "The pin (the part of the address behind `#sha256:`) is mistyped or old, the frontend has a new key, or somebody on the way poses as it. Nothing was told to whoever answered.",
        subject: "the pin in the frontend's address",
        remedy: "Ask the frontend's operator, over another channel, for its address as `kite frontend` prints it at its start, and put that into the configuration. Do not use the key that was found unasked.",
        then: TriesAgain,
        example: "frontend alice.example:443#sha256:…: frontend-unproven: the frontend's key is sha256:…, but sha256:… was pinned (ask the frontend's operator, over another channel, for its current address; …)",
    }
    FrontendUnproven = "KITE-F05" {
        title: "a frontend's certificate was refused",
        cause: "An address without a pin is believed by a certificate, and this one has none that holds: it is signed by nobody known, expired, or for another name. Or this machine's clock is wrong.",
        subject: "the frontend whose address is in the message",
        remedy: "Pin the frontend's key: put the whole address that `kite frontend` prints at its start, with #sha256:…, into the configuration. Else check the clock, or name its authority with --ca-file.",
        then: TriesAgain,
        example: "frontend alice.example:443: frontend-unproven: the frontend's certificate was refused: … (pin the frontend's key by adding #sha256:… to its address …)",
    }
    TlsFailed = "KITE-F06" {
        title: "TLS with a frontend does not come about",
        cause: "The port speaks no TLS, or an old one, or the connection ended during the handshake: it is no port for tunnels, or something stands between.",
        subject: "the port of the frontend whose address is in the message",
        remedy: "Check that the port is one that the frontend listens on for tunnels. An old PageKite frontend without TLS must be written plain://host:port.",
        then: TriesAgain,
        example: "frontend alice.example:80: frontend-unproven: the peer does not speak TLS on this port (check the port; …)",
    }
    OnionUnknown = "KITE-F07" {
        title: "a frontend's onion service is not known to Tor",
        cause: "Tor has no descriptor of it: the address is mistyped, the frontend does not run, or it has just started.",
        subject: "the onion address in the message",
        remedy: "Check the onion address. A service that has just started needs up to a minute.",
        then: TriesAgain,
        example: "frontend ….onion:443: onion-unknown: the onion service is not known to the Tor network (check the onion address; a service that has just started needs up to a minute)",
    }
    OnionDown = "KITE-F08" {
        title: "a frontend's onion service does not answer",
        cause: "Tor knows it, and it is not there: the frontend has ended or restarts, or its network is down.",
        subject: "the onion address in the message",
        remedy: "Wait a minute; then check that the frontend runs.",
        then: TriesAgain,
        example: "frontend ….onion:443: onion-down: the onion service does not answer (check the onion address; …)",
    }
    OnionAuth = "KITE-F09" {
        title: "a frontend's onion service demands client authorisation",
        cause: "It lets in only who has a key for it, and kite has none.",
        subject: "the onion address in the message",
        remedy: "Ask the frontend's operator for an address without client authorisation.",
        then: TriesAgain,
        example: "frontend ….onion:443: onion-auth: the onion service demands client authorisation (ask the frontend's operator for an address without client authorisation)",
    }
    HandshakeFailed = "KITE-F10" {
        title: "PageKite's handshake with a frontend broke off",
        cause: "The connection stood, and what answered is no frontend, is of another kind than its address says, or is overloaded.",
        subject: "the frontend whose address is in the message",
        remedy: "Check that the port is one that the frontend listens on for tunnels, and look at the frontend's log.",
        then: TriesAgain,
        example: "frontend alice.example:443: handshake-failed: the frontend closed the connection during the handshake; look at the frontend's log",
    }
    AddressUnusable = "KITE-F11" {
        title: "a frontend's address cannot be used",
        cause: "It is an onion address without Tor, a malformed one, or a private one, which Tor does not connect to.",
        subject: "the address in the message",
        remedy: "Correct the address; for an onion address add --via-tor.",
        then: TriesAgain,
        example: "frontend 192.168.1.5:443: address-unusable: its address is a private one, which Tor does not connect to (use the frontend's public address; …)",
    }
    SocketFailed = "KITE-F12" {
        title: "the system gives no socket",
        cause: "A limit of this machine is reached: open files, memory, or ports.",
        subject: "this machine",
        remedy: "Look at the limits of open files (`ulimit -n`, LimitNOFILE) and at the memory.",
        then: TriesAgain,
        example: "frontend alice.example:443: socket-failed: the socket failed (…) (kite tries again; if it persists, look at the limits of open files and memory)",
    }
    KitesRefused = "KITE-F13" {
        title: "a frontend flies none of the kites",
        cause: "It refused each of them. A line for each says why, with a code of its own.",
        subject: "the kites that this backend wants to fly at the frontend in the message",
        remedy: "Look at the lines `kite refused` before this one: mostly names and secrets are to be compared with the frontend's.",
        then: TriesAgain,
        example: "frontend alice.example:443: kites-refused: the frontend refused every kite; the lines `kite refused` say why",
    }
    WrongSecret = "KITE-F14" {
        title: "the secret of a kite is wrong",
        cause: "What the backend proves with its secret is not what the frontend expects for this name.",
        subject: "the `secret_file` of the kite in the message, at both sides",
        remedy: "Compare the secret files of both sides, byte for byte; or have the frontend's operator give the kite a new secret (`kite frontend kites remove` and `add`), and put that into the backend's file.",
        then: TriesAgain,
        example: "kite refused: foolscap:tahoebob.alice.example via alice.example:443: the secret is wrong; compare the secret files of both sides",
    }
    NameUnknown = "KITE-F15" {
        title: "a frontend does not know the name of a kite",
        cause: "The name is not within the domains that may fly there, nor one of its kites: it is mistyped, or its operator has not added it.",
        subject: "the `name` of the kite in the message",
        remedy: "Correct the name, or ask the frontend's operator to allow it (`kite frontend kites add NAME`).",
        then: TriesAgain,
        example: "kite refused: foolscap:tahoebob.elsewhere.example via alice.example:443: the frontend does not know this name; correct the name, or ask the frontend's operator to allow it",
    }
    QuotaUsed = "KITE-F16" {
        title: "the quota of a kite is used up",
        cause: "It has carried as many bytes, or has had as many visitors, as its frontend allows in a period.",
        subject: "the kite in the message",
        remedy: "Ask the frontend's operator for more, or wait for the next period.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: the quota is used up; ask the frontend's operator for more",
    }
    KiteExpired = "KITE-F17" {
        title: "the time of a kite at its frontend is over",
        cause: "The last day on which it may fly there has passed.",
        subject: "the kite in the message",
        remedy: "Ask the frontend's operator for more.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: its time at this frontend is over; ask the frontend's operator for more",
    }
    FrontendBusy = "KITE-F18" {
        title: "a frontend cannot check a kite now",
        cause: "It is overloaded, or whom it asks about its kites does not answer.",
        subject: "the frontend in the message",
        remedy: "Nothing; kite tries again by itself. If it lasts, tell the frontend's operator.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: the frontend cannot check it now; kite tries again by itself",
    }
    PortNotServed = "KITE-F19" {
        title: "a frontend does not serve the port of a kite",
        cause: "The kite wants the visitors of one port, and the frontend does not listen there.",
        subject: "the `port` of the kite in the message",
        remedy: "Use one of the frontend's ports, or leave the port out.",
        then: TriesAgain,
        example: "kite refused: http-8080:bob.alice.example via alice.example:443: the frontend does not serve this port; use one of its ports",
    }
    ProtocolNotCarried = "KITE-F20" {
        title: "a frontend does not carry the protocol of a kite",
        cause: "The name may fly there, but for other protocols only.",
        subject: "the `protocol` of the kite in the message",
        remedy: "Ask the frontend's operator to add it to the `protocols` of the kite, or use another.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: the frontend does not carry this protocol for this name; ask its operator to add it to `protocols`",
    }
    ProofRequired = "KITE-F21" {
        title: "a frontend takes the proof of two kites only",
        cause: "It demands KiteProof1, and that is bound to a connection that this backend's address for it does not give: it has no pin and is no onion name, or something ends TLS between the two.",
        subject: "the address of the frontend in the message",
        remedy: "Give the frontend's pinned address or its onion name, as `kite frontend` prints them at its start.",
        then: TriesAgain,
        example: "kite refused: foolscap:bob.alice.example via alice.example:443: the frontend takes the proof of two kites (KiteProof1) only; give its pinned address or its onion name, as it prints them",
    }
    TlsWouldEnd = "KITE-F22" {
        title: "a frontend would end TLS for a kite that has TLS of its own",
        cause: "The frontend lists the name among its TLS endpoints. It could read what it must not, so kite gives the kite up there.",
        subject: "the kite in the message",
        remedy: "Ask the frontend's operator to leave the name out of its TLS endpoints.",
        then: TriesAgain,
        example: "kite refused: https:bob.alice.example via alice.example:443: the frontend would end TLS for it, and this kite has TLS of its own; ask its operator to leave the name out of its TLS endpoints",
    }
    KiteTaken = "KITE-F23" {
        title: "another tunnel flies a kite",
        cause: "Another backend has the same name and secret, or the frontend has not noticed yet that an old tunnel of this one is dead.",
        subject: "the kite in the message",
        remedy: "Wait a minute; if it stays, stop the other backend, or give this one a name of its own.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: another tunnel flies this kite; if it is an old one of this node the frontend will find out within a minute; else stop the other backend",
    }
    RefusedOtherwise = "KITE-F24" {
        title: "a frontend refuses a kite for a reason of its own",
        cause: "It gave a reason that PageKite does not define, or none; the message has its words.",
        subject: "the kite in the message",
        remedy: "Ask the frontend's operator.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via alice.example:443: no reason was given; ask the frontend's operator",
    }
    TunnelLost = "KITE-F25" {
        title: "a tunnel to a frontend was lost",
        cause: "The connection broke, went silent, or the frontend closed it. Its visitors were cut off; a circuit through Tor lives for hours or days, so it happens.",
        subject: "the frontend in the message",
        remedy: "Nothing; kite dials again at once. Two tunnels to each frontend (`tunnels`), and two frontends, bridge the gap.",
        then: TriesAgain,
        example: "frontend alice.example:443: lost after 7200 s: nothing came from the peer for 25 s; kite dials again",
    }
    PlainFrontend = "KITE-F26" {
        title: "the way to a frontend is not protected",
        cause: "An address with plain:// has neither TLS nor proof: whoever carries the connection can read and change the tunnel, and can take the kite over.",
        subject: "the address in the message",
        remedy: "Use the address that `kite frontend` prints at its start, with its pin, or its onion name.",
        then: GoesOn,
        example: "frontend plain://alice.example:80: plain:// is not protected; whoever carries the connection can take the kite over; use its pinned address if it has one",
    }
    NoProof = "KITE-F27" {
        title: "a frontend does not prove that it knows the secret",
        cause: "It is an old program, or kite behind another's TLS or Tor. It got PageKite's signature, which it can use at another frontend where name and secret are the same.",
        subject: "the frontend in the message",
        remedy: "Give each frontend its own secret, or pin the key that kite prints there.",
        then: GoesOn,
        example: "frontend alice.example:443: it does not prove that it knows the secret, and can use our answer at another frontend …; give each frontend its own secret, or pin the key that kite prints there",
    }
    NoChallenge = "KITE-F28" {
        title: "a frontend asked for no proof of the secret",
        cause: "A frontend that knows the secret asks for a proof of it. Over plain:// anybody may answer in its place, and did not ask.",
        subject: "the frontend in the message",
        remedy: "Use the frontend's pinned address or its onion name instead of plain://.",
        then: GoesOn,
        example: "frontend plain://alice.example:80: it asked for no proof of the secret; it may be anybody; use its pinned address if it has one",
    }
    TlsEnded = "KITE-F29" {
        title: "a frontend ends TLS for a kite unasked",
        cause: "Its operator made the name a TLS endpoint, so it reads what the visitors of this http kite send.",
        subject: "the kite and the frontend in the message",
        remedy: "Write tls = \"frontend\" in the kite's table if it is all right; else ask the frontend's operator to leave the name out of its TLS endpoints.",
        then: GoesOn,
        example: "http:bob.alice.example: the frontend alice.example:443 ends TLS for it, and reads what it carries, and nobody here asked for that; write tls = \"frontend\" if it is all right",
    }
    NoTlsAtFrontend = "KITE-F30" {
        title: "a frontend has no certificate for a kite that asks for one",
        cause: "The kite says tls = \"frontend\", and the frontend holds no certificate for its name.",
        subject: "the kite and the frontend in the message",
        remedy: "Ask the frontend's operator for a certificate for the name (`[acme]` or `[[certificates]]`), or remove tls = \"frontend\".",
        then: GoesOn,
        example: "http:bob.alice.example: the frontend alice.example:443 has no certificate for it, so visitors cannot come by https; …",
    }
    PlaintextKite = "KITE-F31" {
        title: "what a kite carries can be read on the way",
        cause: "The kite's protocol has no TLS of its own, so its frontends, and everyone between them and visitors, can read it.",
        subject: "the `protocol` of the kite in the message",
        remedy: "If the origin has TLS, give the kite protocol = \"https\"; else carry nothing secret.",
        then: GoesOn,
        example: "http:bob.alice.example: frontends, and everyone between them and visitors, can read what this kite carries; …",
    }
    StreamUnasked = "KITE-F32" {
        title: "a frontend sent a visitor to a kite that does not fly there",
        cause: "It opened a stream for a name that this backend did not register at it: a fault of the frontend, or a try to reach what it may not. The visitor was refused.",
        subject: "one of the frontends",
        remedy: "Nothing was let in. If it goes on, ask the frontend's operator, or leave that frontend.",
        then: GoesOn,
        example: "a frontend opened a stream for a kite that is not flown, and was refused; …",
    }
    KiteRefused = "KITE-F33" {
        title: "this frontend refused a kite",
        cause: "A backend asked for a name that it may not fly, or with a wrong secret, or on a port or with a protocol that the name has not. The message ends with PageKite's word for it.",
        subject: "the kite in the message",
        remedy: "If it should fly: compare its name, secret, port and protocols with this frontend's `[[kites]]`, --domain and `kite frontend kites list`.",
        then: GoesOn,
        example: "kite refused: http:bob.alice.example from …: signature; …",
    }
    KiteTakenDown = "KITE-F34" {
        title: "this frontend took a kite down",
        cause: "It was removed, has expired, or has used up what it may have in a period.",
        subject: "the kite in the message",
        remedy: "`kite frontend kites list` shows what each has used; give it more time or more quota if it should fly.",
        then: GoesOn,
        example: "kite down: http:bob.alice.example: its quota of bytes is used up; …",
    }
    AuthoritySilent = "KITE-F35" {
        title: "whom this frontend asks about kites does not answer",
        cause: "The program or the name server of [[authorities]] failed, was too slow, or said what cannot be understood. The kite in question does not fly until it answers.",
        subject: "the authority for the kite in the message",
        remedy: "Start the program by hand with the kite's name, or ask the name server; look at `program`, `dns` and `resolver` in the [[authorities]] table.",
        then: TriesAgain,
        example: "bob.alice.example does not fly: the authority does not answer: …; …",
    }
    CertificateUnusable = "KITE-F36" {
        title: "a certificate file cannot be used",
        cause: "It cannot be read, others may read it, it holds no chain or no key, or certificate and key do not belong together.",
        subject: "the file that the message names",
        remedy: "Do what the message says: give the whole chain and its key, without a passphrase, in PEM files with mode 600. While kite runs, the certificate that was there before stays in use.",
        then: Ends,
        example: "/etc/kite/alice.pem: it holds no certificate that can be read; give a PEM file with the whole chain, the server's own first (certbot calls it fullchain.pem)",
    }
    CertificateDates = "KITE-F37" {
        title: "a certificate has expired, soon does, or does not hold yet",
        cause: "Nobody has renewed it; or this machine's clock is wrong.",
        subject: "the certificate that the message names",
        remedy: "Put a new one in its place: kite takes it within seconds, without a restart. Or have kite get its own ([acme]).",
        then: GoesOn,
        example: "certificate /etc/kite/alice.pem: it expires in 12 days; put a new one in its place before then",
    }
    NoCertificate = "KITE-F38" {
        title: "no certificate was got from the authority",
        cause: "The certificate authority ([acme]) could not be reached, or did not find its proof at this machine.",
        subject: "the name in the message",
        remedy: "Let the name lead to this machine in DNS, and open its port 443 or 80 to everybody; the message has the authority's own words.",
        then: TriesAgain,
        example: "no certificate for alice.example from https://…: the authority found no proof that the name leads here: …; next attempt in 5 min",
    }
    NotIntroduced = "KITE-F39" {
        title: "a connection to a port behind load balancers was refused",
        cause: "It does not come from a load balancer in `proxy_from`, or did not begin with a PROXY header.",
        subject: "the port in the message",
        remedy: "If it was a load balancer's: add its address to `proxy_from`, and turn the PROXY protocol on there. Else nothing: a stranger was turned away.",
        then: GoesOn,
        example: "port 443: a connection from … was refused: it is not from a load balancer in proxy_from",
    }
    NoStream = "KITE-F40" {
        title: "a visitor could not be brought to a backend",
        cause: "The tunnel is full, ending, or has used up its numbers.",
        subject: "the name in the message",
        remedy: "If it is often: see how many visitors the kite has at one time (`kite status`), and limit them, or let its backend keep more tunnels.",
        then: GoesOn,
        example: "no stream for a visitor of bob.alice.example: the tunnel carries as many streams as it may; …",
    }
    OwnKeyUnusable = "KITE-F41" {
        title: "a frontend's own key cannot be used",
        cause: "frontend-key.pem in the state directory cannot be read, others may read it, or it is damaged. kite makes no new one by itself, since backends have pinned this one.",
        subject: "the file that the message names",
        remedy: "Do what the message says; restore the key from a backup, or move it away to begin with a new one, and give backends the new address.",
        then: Ends,
        example: "/var/lib/kite/frontend-key.pem: others may read or change it (mode 644); run chmod 600 on it",
    }
    InvitationRefused = "KITE-F42" {
        title: "a frontend did not take an invitation",
        cause: "It has expired, was taken back or used already, its kite was given away or removed, or the frontend knows nothing of it.",
        subject: "the kite and the frontend that the message names",
        remedy: "Ask the frontend's operator for another invitation (`kite frontend invite NAME`).",
        then: Ends,
        example: "bob.alice.example at alice.example:443#sha256:…: the invitation has expired; ask the frontend's operator for another",
    }
    InvitationReadTwice = "KITE-F43" {
        title: "two have read one invitation",
        cause: "An invitation that was used already was brought again, with another secret: by somebody who read the line, or by its holder, who was too late.",
        subject: "the kite that the message names",
        remedy: "Ask its holder which of the two they are; `kite frontend kites remove NAME` takes the kite from both. Then invite again, in a way that others cannot read.",
        then: GoesOn,
        example: "the invitation to fly bob.alice.example was used already, and [scrubbed] came with it and another secret: two have read it. …",
    }
    OtherNode = "KITE-F44" {
        title: "a visitor comes to another node than this one",
        cause: "The backend went to its kite's public name as a visitor would, and a node with another key answered: the name leads elsewhere, somebody has taken it over, or tub_id is another node's.",
        subject: "the kite, the frontend, and the tub that answered",
        remedy: "Compare tub_id with the node's file my_nodeid; look where the name leads; ask the frontend's operator who flies it.",
        then: TriesAgain,
        example: "foolscap:bob.alice.example via alice.example:443: a visitor does not come to this node: another node answered, tub …",
    }
    VisitFailed = "KITE-F45" {
        title: "a visitor does not come to the node",
        cause: "The backend went to its kite's public name as a visitor would, and did not come to the node: the port is closed, the frontend does not know the kite, the origin is down, or something on the way changes what passes.",
        subject: "the kite, the frontend, and what was answered",
        remedy: "Do what the message says; `kite check` looks at all that lies between.",
        then: TriesAgain,
        example: "foolscap:bob.alice.example via alice.example:443: a visitor does not come to this node: the upgrade was refused: HTTP/1.1 503 Unavailable; …",
    }
    NotOpen = "KITE-F46" {
        title: "a frontend lets no kite prove itself by its tub",
        cause: "The kite has no secret for this frontend, and the frontend is not open: it has no [open] section, or is older than that, or no kite.",
        subject: "the kite and the frontend in the message",
        remedy: "Ask the frontend's operator for [open], or for a secret; or fly the kite at an open frontend only (`kites` under [[frontends]]).",
        then: TriesAgain,
        example: "kite refused: foolscap:rznjxrmn666ovyilykucaws7ap26djwf.alice.example via alice.example:443: the frontend lets no kite prove itself by its tub; ask its operator for [open], or for a secret, and give that",
    }
    TubUnproven = "KITE-F47" {
        title: "a kite did not prove that it is called by its own tub",
        cause: "The key that was shown is another tub's, or none was shown where the frontend wants one; or the frontend paid a visit through the new tunnel and came to another node, or to none within its time.",
        subject: "the kite and the frontend in the message",
        remedy: "Begin the kite's name with the node's TubID (my_nodeid), give private/node.pem as secret_file, and let the node run.",
        then: TriesAgain,
        example: "kite refused: foolscap:rznjxrmn666ovyilykucaws7ap26djwf.alice.example via alice.example:443: the frontend wants a proof by the tub's key; give the node's private/node.pem as secret_file, and a pinned or onion address of the frontend",
    }
    EtcdLost = "KITE-F48" {
        title: "the etcd of the fleet cannot be reached",
        cause: "None of its endpoints answers: etcd is down, has lost most of its cluster, or the network between is. What was known of the fleet is kept, kites go on flying and visitors are forwarded; what changes here is told to etcd when it is back.",
        subject: "the endpoint in the message",
        remedy: "Check that etcd runs (`etcdctl endpoint health`), and the network and firewall between.",
        then: TriesAgain,
        example: "etcd at https://etcd-1.example:2379: it refused the connection; check that etcd runs, and the network between; kite tries again; the map of the fleet stays as it is",
    }
    EtcdRefuses = "KITE-F49" {
        title: "the etcd of the fleet does not do what it is asked",
        cause: "It answers, and says no: the certificate or the user is not the one that it wants, its database is full, or it is not an etcd of version 3.4 or later. The fleet goes on with what it knew.",
        subject: "the endpoint in the message, and etcd's reason",
        remedy: "Do what the message says; etcd's own log has more.",
        then: TriesAgain,
        example: "etcd at https://etcd-1.example:2379: its database is full, and takes nothing new; compact and defragment etcd, then `etcdctl alarm disarm`; or raise its --quota-backend-bytes; the map of the fleet stays as it is",
    }
    MemberUnreachable = "KITE-F50" {
        title: "another frontend of the fleet cannot be reached",
        cause: "It does not run, its internal port is closed to this machine, it shows another key than `pin` of its [[fleet.members]] says, or it does not know this one by its key.",
        subject: "the member and its address",
        remedy: "Look whether it runs, whether its `listen` under [fleet] and `address` here are the same port, and whether a firewall lets this machine in; `kite status` on it shows its pin, and `kite status` here the one that its list must have of this one.",
        then: TriesAgain,
        example: "fleet: b at 10.0.0.2:4430 cannot be told what flies here: [KITE-F01] it refused the connection; trying again",
    }
    MemberLost = "KITE-F51" {
        title: "nothing is heard any more of another frontend of the fleet",
        cause: "It has stopped or is being replaced, or the network between the two is broken.",
        subject: "the other member",
        remedy: "Nothing, if it was stopped: its backends go to other members. Else look at its log, and at the network between the machines.",
        then: TriesAgain,
        example: "fleet: the link from b has ended; what flies there is remembered for 15 s",
    }
    FleetStranger = "KITE-F52" {
        title: "somebody at the fleet's internal port was turned away",
        cause: "It is no member, or shows a key that [[fleet.members]] does not have: a member whose `pin` is not written down here yet, a port scanner, or a misdirected program.",
        subject: "the internal port; who it was is not said",
        remedy: "Write the member's `pin` into [[fleet.members]] here, if it is one; let a firewall keep all but members from the port, if it is not.",
        then: GoesOn,
        example: "fleet: somebody at the internal port was turned away: the frontend's certificate was refused: …",
    }
    MemberTwice = "KITE-F53" {
        title: "two frontends of the fleet have one name",
        cause: "Another frontend, with another key, has written the `id` of this one into etcd, or [[fleet.members]] has another key for it: a configuration was copied, a machine was set up anew and the old one still runs, or `fleet-key.pem` was lost.",
        subject: "the name, and the other's address and key",
        remedy: "Give each its own `id` under [fleet]; stop the one that is not to be there; write down at all members the `pin` that this one's log shows.",
        then: GoesOn,
        example: "fleet: another frontend at 10.0.0.3:4430 calls itself fe-1, too, with the key sha256:…; give each a name of its own",
    }

    FleetFull = "KITE-F54" {
        title: "as many visitors are with other members of the fleet as may be",
        cause: "Their kites fly at other members, and each takes a place here for as long as it is there. One more was told that nobody is there.",
        subject: "this member; which visitors they are is not said",
        remedy: "Let more visitors come to the members where their kites fly: list every member's address for the domain, and let backends keep tunnels at more of them. docs/limits.md has the bound.",
        then: GoesOn,
        example: "fleet: 4096 visitors are with other members: one more was told that nobody is there",
    }
    KitesLeftOut = "KITE-F55" {
        title: "an older frontend flies a part of this backend's kites only",
        cause: "A tunnel is begun with 32 kites, or fewer if their names are long; the others are asked for once it stands (AddKites). This frontend does not know that, or ends the tunnel when it refuses all kites of such a question, as pagekite.py does.",
        subject: "the kite and the frontend in the message",
        remedy: "Compare the kite's name and secret with the frontend's operator; or fly these kites at another frontend (`kites` under [[frontends]]), or by another backend.",
        then: TriesAgain,
        example: "kite refused: http:bob.alice.example via plain://alice.example:80: the frontend gave no answer for it beside others that fly; an older program drops the tunnel if it refuses all of a question: compare name and secret with its operator",
    }
    FrontendPoor = "KITE-F56" {
        title: "a frontend does poorly",
        cause: "Of the visits that the backend paid to its own kites through it, over half came nowhere; the later ones weigh more.",
        subject: "the frontend, and its score",
        remedy: "Look at the lines of the single visits before this one (KITE-F45), and ask the frontend's operator. `kite status` shows the score; visits go on, and it is said when it does well again.",
        then: TriesAgain,
        example: "alice.example:443 does poorly: its score is 33 of 100",
    }
    FrontendAstray = "KITE-F57" {
        title: "a frontend leads visitors astray",
        cause: "A visit that the backend paid to its own kite through it came to another key (KITE-F44), or what was said before TLS was changed on the way: the address was taken over, or a proxy there rewrites what passes.",
        subject: "the frontend, the kites, and its score",
        remedy: "Compare tub_id with the node's my_nodeid; ask the frontend's operator over another channel, or leave the frontend. `kite tahoe` shows no proven address meanwhile; a good visit of the same kite in the same way takes the mark away.",
        then: TriesAgain,
        example: "alice.example:443 leads visitors astray: to another key, or with changed bytes (foolscap:bob.alice.example); its score is 80 of 100",
    }

    // ----------------------------------------------------------------- origin
    OriginDown = "KITE-B01" {
        title: "nothing listens at the origin",
        cause: "The server behind the kite does not run, or listens on another address. Visitors are refused until it does.",
        subject: "the `origin` of the kite in the message",
        remedy: "Start the server (for Tahoe-LAFS: `tahoe run`), and compare the address with what it listens on (`tub.port` in tahoe.cfg, `ss -ltn`).",
        then: TriesAgain,
        example: "bob.alice.example: nothing listens at the origin 127.0.0.1:49293; check that the server runs, and that it listens on this address; visitors are refused until then",
    }
    OriginSlow = "KITE-B02" {
        title: "the origin does not answer",
        cause: "The server behind the kite accepts no connections in time: it hangs, or is overloaded.",
        subject: "the `origin` of the kite in the message",
        remedy: "Look at the server, and at its log.",
        then: TriesAgain,
        example: "bob.alice.example: the origin 127.0.0.1:49293 did not answer within 10 s; look at the server: it accepts no connections",
    }
    OriginUnreachable = "KITE-B03" {
        title: "the origin cannot be reached",
        cause: "The system refuses the connection: no permission for the socket, no route, or a limit is reached.",
        subject: "the `origin` of the kite in the message",
        remedy: "Check the address, the socket's permissions and the limits of open files.",
        then: TriesAgain,
        example: "bob.alice.example: the origin unix:/run/bob.sock cannot be reached (permission denied); check the address, the socket's permissions and the limits of open files",
    }
    OriginIsWeb = "KITE-B04" {
        title: "the origin of a foolscap kite is a web server",
        cause: "It is Tahoe's web interface, most likely, and that must never be public: its URLs are the keys to the files. kite does not fly it.",
        subject: "the `origin` of the kite in the message",
        remedy: "Give the port from `tub.port` in tahoe.cfg instead (and not `web.port`). If it shall be a web server for everybody, write protocol = \"http\".",
        then: Ends,
        example: "bob.alice.example: the origin 127.0.0.1:3456 is a web server, not a foolscap port. Tahoe's web interface must never be public: its URLs are the keys to the files. Give the port from tub.port in tahoe.cfg",
    }
    OriginStrange = "KITE-B05" {
        title: "the origin does not answer as a foolscap port does",
        cause: "Something listens there, and it is neither foolscap nor a web server, or says nothing. Visitors are refused until it speaks foolscap.",
        subject: "the `origin` of the kite in the message",
        remedy: "Compare it with `tub.port` in tahoe.cfg; if it is no Tahoe node, write the protocol that it speaks.",
        then: TriesAgain,
        example: "bob.alice.example: the origin 127.0.0.1:22 does not answer as a foolscap port does; visitors are refused until it does; compare it with tub.port in tahoe.cfg",
    }
    OriginNoHeader = "KITE-B06" {
        title: "the origin does not take a PROXY header",
        cause: "The kite has proxy_protocol, and behind its header the origin does not speak foolscap. A Tahoe node knows no such header.",
        subject: "the `origin` and `proxy_protocol` of the kite in the message",
        remedy: "Remove proxy_protocol, unless the origin is a proxy in front of the node that takes one.",
        then: TriesAgain,
        example: "bob.alice.example: the origin 127.0.0.1:49293 does not answer a PROXY header and foolscap behind it; …",
    }
    OriginHangsUp = "KITE-B07" {
        title: "the origin hung up on a visitor at once",
        cause: "It took the connection, and closed it or read nothing: it does not understand what the kite tells it of the visitor (`proxy_protocol`), or is ending.",
        subject: "the `origin` of the kite in the message",
        remedy: "Look at the origin's log; remove proxy_protocol if it knows no such header.",
        then: TriesAgain,
        example: "bob.alice.example: the origin 127.0.0.1:8080 took a connection and hung up, or read nothing; look at its log",
    }

    // ---------------------------------------------------------- configuration
    Usage = "KITE-C01" {
        title: "the command line is not understood",
        cause: "A flag, a command or a value is unknown, missing, or of another form than it must have.",
        subject: "the word that the message names",
        remedy: "`kite COMMAND --help` shows what there is; the message names the nearest.",
        then: Ends,
        example: "error: unexpected argument '--via-to' found",
    }
    FileUnreadable = "KITE-C02" {
        title: "a configuration file cannot be read",
        cause: "It is not there, this user may not read it, it is far too long, or no text.",
        subject: "the file that the message names",
        remedy: "Give --config the path of a readable TOML file.",
        then: Ends,
        example: "nowhere.toml: there is no such file\n  to mend it: give --config the path of a readable TOML file",
    }
    FileMalformed = "KITE-C03" {
        title: "a configuration file says what kite does not know",
        cause: "A key is unknown, stands in the wrong table, or has a value of the wrong kind; or it is no TOML. Unknown keys are errors, since a mistyped one would do nothing in silence.",
        subject: "the file, line and column that the message names; what stands there is not repeated, since it may be a secret",
        remedy: "Correct the line; the message lists the keys that could stand there.",
        then: Ends,
        example: "backend.toml:9:1: unknown field `colour`, expected one of `frontends`, …\n  to mend it: docs/reference.md lists the keys",
    }
    SecretMissing = "KITE-C04" {
        title: "a secret is missing",
        cause: "No secret was given for a kite, its file is not there or cannot be read, or it is empty or too long.",
        subject: "the kite, the file or the variable that the message names",
        remedy: "Put the secret, and nothing else, into a file (`openssl rand -hex 32 > bob.secret; chmod 600 bob.secret`), and name it with --secret-file or secret_file. Both sides need the same.",
        then: Ends,
        example: "backend.toml: kites[0].secret_file: bob.secret: there is no such file\n  to mend it: write the secret to bob.secret and run: chmod 600 bob.secret",
    }
    SecretExposed = "KITE-C05" {
        title: "other users may read a secret",
        cause: "The mode of the file lets others than its owner read it, so it may be known already.",
        subject: "the file that the message names",
        remedy: "Run chmod 600 on it. If other users work on this machine, make a new secret, too.",
        then: Ends,
        example: "backend.toml: kites[0].secret_file: bob.secret: other users may read this secret (mode 644)\n  to mend it: chmod 600 bob.secret",
    }
    BadName = "KITE-C06" {
        title: "a text is no kite name",
        cause: "A kite's name is a DNS name in letters, digits, '-', '_' and '.', and only at a frontend may it begin with '*.'.",
        subject: "the name that the message shows",
        remedy: "Write a DNS name such as bob.alice.example.",
        then: Ends,
        example: "SERVICE: 'a b' is no kite name: it may hold letters, digits, '-', '_' and '.', and a '*' only as its first label\n  to mend it: write a DNS name such as bob.alice.example",
    }
    BadProtocol = "KITE-C07" {
        title: "a protocol or a service is not understood",
        cause: "The word is none of kite's protocols, its port is none, or a SERVICE has not the form PROTOCOL[-PORT]:KITENAME:ORIGIN.",
        subject: "the word that the message shows",
        remedy: "Correct the word, as in foolscap:tahoebob.alice.example:127.0.0.1:49293.",
        then: Ends,
        example: "SERVICE: 'gopher' is no protocol …\n  to mend it: correct the word before the first colon",
    }
    BadFrontend = "KITE-C08" {
        title: "a frontend's address is not understood",
        cause: "It has no port, no host, a malformed pin, or a scheme that kite does not know.",
        subject: "the address that the message shows",
        remedy: "Copy the address that `kite frontend` prints at its start: host:port#sha256:PIN, host:port, NAME.onion:port, or plain://host:port.",
        then: Ends,
        example: "--frontend: it has no port; write alice.example:443, or the port that the frontend listens on\n  to mend it: copy the address that `kite frontend` printed at its start",
    }
    BadOrigin = "KITE-C09" {
        title: "an origin is not understood, or not on this machine",
        cause: "An origin is a literal address with a port, or the path of a Unix socket. Names are not looked up, and another machine's address must be allowed, since the traffic crosses a network in the clear.",
        subject: "the `origin` that the message shows",
        remedy: "Give the node's own address, such as 127.0.0.1:49293, or unix:/path/of/socket; list another machine's in allow_origin.",
        then: Ends,
        example: "SERVICE: 'storage.example:1' needs a look-up, which origins must not; write its address, such as 127.0.0.1:1\n  to mend it: give the node's own address, …",
    }
    BadListen = "KITE-C10" {
        title: "an address to listen on is not understood",
        cause: "It is no IP address with a port, or the kite that the port is given to is not one kite.",
        subject: "the `listen` entry or flag that the message shows",
        remedy: "Write an IP address and a port, such as 0.0.0.0:443 or [::]:443.",
        then: Ends,
        example: "--listen: 'alice.example:80' is no address with a port\n  to mend it: write an IP address and a port, such as 0.0.0.0:443 or [::]:443",
    }
    NothingToDo = "KITE-C11" {
        title: "the configuration lacks something without which there is nothing to do",
        cause: "There is no frontend to dial, no kite to fly, no address to listen on, or nothing to check.",
        subject: "the key that the message names",
        remedy: "Add what the message asks for, as flags or in the file.",
        then: Ends,
        example: "frontends: there is no frontend to dial\n  to mend it: add --frontend ADDRESS with the address that `kite frontend` printed, or a [[frontends]] table",
    }
    Contradiction = "KITE-C12" {
        title: "two settings contradict each other",
        cause: "Something is named that is not there, given twice, or set where it has no meaning.",
        subject: "the keys that the message names",
        remedy: "Keep one of the two, or correct the name; the message says which.",
        then: Ends,
        example: "backend.toml: frontends: alice.example:443 shall fly eve.alice.example, which is not among the kites\n  to mend it: correct the name, or add the kite",
    }
    TorOff = "KITE-C13" {
        title: "something asks for Tor, and Tor is off",
        cause: "There are settings for Tor, a SOCKS port, an onion frontend or a proxy line, but not --via-tor. To dial directly would show this machine's address, so kite does not start.",
        subject: "the key that the message names",
        remedy: "Add --via-tor (or enabled = true under [tor]); or remove the setting, if frontends may see this machine's address.",
        then: Ends,
        example: "backend.toml: tor.config: there are settings for Tor, but Tor is off, and frontends would see this machine's address\n  to mend it: add --via-tor, or enabled = true under [tor]; or remove the settings",
    }
    BadSocks = "KITE-C14" {
        title: "the address of the SOCKS port is not on loopback",
        cause: "Whoever can connect to it may use this machine's Tor, so other machines must not reach it; or it is no address with a port.",
        subject: "--socks-listen, or `socks_listen` under [tor]",
        remedy: "Write a loopback address with a port, such as 127.0.0.1:9150.",
        then: Ends,
        example: "--socks-listen: 0.0.0.0:9150 can be reached from other machines\n  to mend it: write a loopback address with a port, such as 127.0.0.1:9150",
    }
    OutOfRange = "KITE-C15" {
        title: "a number is too small or too large",
        cause: "It is outside of what the key may be.",
        subject: "the key that the message names",
        remedy: "Write a number within the range that the message gives.",
        then: Ends,
        example: "--frontend: 9 tunnels cannot be kept\n  to mend it: set tunnels to a number from 1 to 4",
    }
    BadValue = "KITE-C16" {
        title: "a value has not the form that its key wants",
        cause: "It is no date, no address, no TubID, no host, no URL, or no readable file, as the message says.",
        subject: "the key that the message names",
        remedy: "Write it in the form that the message shows.",
        then: Ends,
        example: "backend.toml: kites[0].tub_id: 'abc' is no TubID: …\n  to mend it: copy it from my_nodeid in the node's directory, or from between pb:// and @ in its storage FURL",
    }
    BadAcme = "KITE-C17" {
        title: "what the table acme says is not enough to get a certificate",
        cause: "There is no name, a wildcard, no acceptance of the authority's terms, or a directory that is no https URL.",
        subject: "the key of [acme] that the message names",
        remedy: "Add what the message asks for.",
        then: Ends,
        example: "frontend.toml: acme.accept_terms: the authority's terms of service are not accepted\n  to mend it: read them …, then add accept_terms = true",
    }
    BadAuthority = "KITE-C18" {
        title: "an entry of the list authorities is of no use",
        cause: "It names not exactly one way to ask, a program that others may change, or no name server.",
        subject: "the entry that the message names",
        remedy: "Give program = \"/path/of/it\", which only its owner may change, or dns = \"auth.alice.example\".",
        then: Ends,
        example: "frontend.toml: authorities[0]: it has not one way to be asked\n  to mend it: give program = \"/path/of/it\", or dns = \"auth.alice.example\", and not both",
    }
    BadBalancers = "KITE-C19" {
        title: "it is not clear whose PROXY headers to believe",
        cause: "Whoever may write one may claim any address, so `proxy_from` must say who may; or it is given without proxy_protocol, or not understood.",
        subject: "the `listen` entry that the message names",
        remedy: "List the load balancers' addresses or networks in proxy_from, and set proxy_protocol = true.",
        then: Ends,
        example: "frontend.toml: listen[0].proxy_from: whoever may write a PROXY header may claim any address, so it must be said who may\n  to mend it: list the load balancers' addresses or networks, …",
    }
    StateDir = "KITE-C20" {
        title: "the state directory cannot be used",
        cause: "There is no home directory to put it in, or this user may not make it or write to it.",
        subject: "the directory that the message names",
        remedy: "Give --state-dir DIR with a place that this user may write to.",
        then: Ends,
        example: "cannot make the state directory /var/lib/kite: Permission denied (os error 13); give --state-dir DIR with a place that this user may write to",
    }
    PortTaken = "KITE-C21" {
        title: "another program uses the port",
        cause: "Only one program can listen on an address: another kite, a web server, or a Tor with its SOCKS port is there already.",
        subject: "the address that the message names",
        remedy: "See who it is (`ss -ltnp`), and stop it; or choose another port (--listen, for SOCKS --socks-listen).",
        then: Ends,
        example: "cannot listen on 0.0.0.0:443: another program uses this port; stop it, or choose another port; the address is given with --listen",
    }
    PortForbidden = "KITE-C22" {
        title: "kite may not listen on an address",
        cause: "Ports below 1024 are for root and who was granted them, this machine has no such address, or an upgrade would need a port that the frontend it succeeds had not.",
        subject: "the address that the message names",
        remedy: "Grant CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit, `setcap` on the program), choose a higher port, or use 0.0.0.0 for all addresses that the machine has. Restart a frontend that shall have other ports.",
        then: Ends,
        example: "cannot listen on 0.0.0.0:443: this user may not use ports below 1024; grant CAP_NET_BIND_SERVICE, or choose a higher port; the address is given with --listen",
    }
    SecretInherited = "KITE-C23" {
        title: "another program would get to know the secret",
        cause: "The variable KITE_SECRET is set, and the program of a pluggable transport inherits kite's environment.",
        subject: "the variable KITE_SECRET",
        remedy: "Put the secret into a file (--secret-file, secret_file), and unset the variable.",
        then: Ends,
        example: "KITE_SECRET is set, and /usr/bin/obfs4proxy would inherit it; put the secret into a file (--secret-file, secret_file)",
    }
    NobodyThere = "KITE-C24" {
        title: "no kite runs with this state directory",
        cause: "It does not run, or with another --state-dir than the one that was asked.",
        subject: "the state directory that the message names",
        remedy: "Start it, or name its state directory with --state-dir; a service of systemd's has /var/lib/kite, mostly.",
        then: Ends,
        example: "no kite runs with the state directory /home/bob/.local/state/kite; name another with --state-dir",
    }
    NoAnswer = "KITE-C25" {
        title: "a running kite gave no answer",
        cause: "It answers only the user that runs it, and root; or it is stuck.",
        subject: "the socket that the message names",
        remedy: "Ask as the user that runs it, or as root (`sudo -u kite kite status`).",
        then: Ends,
        example: "the kite at /var/lib/kite/backend.sock gave no answer; ask as the user that runs it, or as root",
    }
    OtherVersion = "KITE-C26" {
        title: "the running kite is of another version",
        cause: "The program was replaced, and the old one still runs.",
        subject: "the running kite",
        remedy: "Restart it, or use the `kite` that belongs to it.",
        then: Ends,
        example: "the kite at /var/lib/kite/backend.sock is of another version; restart it, or use its own `kite`",
    }
    ReloadRefused = "KITE-C27" {
        title: "the new configuration was not taken",
        cause: "It changes what takes effect at a start only, is too long to be sent, or its origin must not become public. Nothing has changed.",
        subject: "the key that the message names",
        remedy: "Restart kite instead, or take the change back.",
        then: GoesOn,
        example: "nothing was changed: `ca_file` has changed, which takes effect at a start only; restart kite instead",
    }
    BookUnusable = "KITE-C28" {
        title: "the book of kites cannot be used",
        cause: "The file with the kites that were added is in use, cannot be read or written, others may read it, or it is damaged.",
        subject: "kites.redb in the frontend's state directory",
        remedy: "Run the command as the user that runs the frontend; do what the message says; put a copy from a backup in its place if it is damaged.",
        then: Ends,
        example: "/var/lib/kite/kites.redb: Permission denied (os error 13); run this as the user that runs the frontend, or give --state-dir DIR",
    }
    BookDisagrees = "KITE-C29" {
        title: "the book of kites says otherwise",
        cause: "A kite to be added is there already, one to be removed is not, or it is in the configuration file; or the book is full.",
        subject: "the kite that the message names",
        remedy: "`kite frontend kites list` shows what is there; a kite of the configuration file is changed in the file.",
        then: Ends,
        example: "bob.alice.example is in the book already; remove it first",
    }
    BookUnwritten = "KITE-C30" {
        title: "what kites have used could not be written down",
        cause: "The frontend's book of kites cannot be written: a full disk, or changed permissions. After a restart the kites have their quota once more.",
        subject: "the frontend's state directory",
        remedy: "Look at the disk's free space and at the directory's permissions.",
        then: TriesAgain,
        example: "what kites have used cannot be written down: …; look at the free space and the permissions there",
    }
    NodeUnreadable = "KITE-C31" {
        title: "a Tahoe-LAFS node's directory cannot be read",
        cause: "It is no node's directory, this user may not read it, or its tahoe.cfg has a mistake.",
        subject: "the directory or file that the message names",
        remedy: "Give the directory that `tahoe create-node` made, as a user who may read it; mend the line that the message names.",
        then: Ends,
        example: "/home/bob/node: this is no directory of a Tahoe-LAFS node: there is no tahoe-client.tac or tahoe-introducer.tac; give the directory that `tahoe create-node` made",
    }
    NodeUnwritten = "KITE-C32" {
        title: "tahoe.cfg could not be changed",
        cause: "This user may not write there, or the file is laid out in a way that kite cannot edit. Nothing was changed.",
        subject: "the file that the message names",
        remedy: "Run kite as the file's owner, or as root; or put the lines in by hand, as `kite tahoe` prints them.",
        then: Ends,
        example: "/home/bob/node/tahoe.cfg: cannot be written: Permission denied (os error 13); nothing was changed. Run kite as the file's owner, or as root",
    }
    NoNodeLines = "KITE-C33" {
        title: "the kites give no lines for a Tahoe-LAFS node",
        cause: "None of them is for Tahoe, they lead to several nodes, or something is missing that the node must know: a port, or a SOCKS port.",
        subject: "the kite that the message names",
        remedy: "Add what the message asks for, or give a configuration with the kites of one node.",
        then: Ends,
        example: "there is no SOCKS port through which the node could go out; add --via-tor --socks-listen 127.0.0.1:9150, …",
    }
    CheckUnable = "KITE-C34" {
        title: "it could not be checked whether something leaks",
        cause: "strace is missing or not understood, the backend did not run for long enough, or it does not use Tor at all.",
        subject: "`kite check --leaks`",
        remedy: "Do what the message says; no leak was found, and none was ruled out.",
        then: Ends,
        example: "strace cannot be started (…); install it, on Debian: apt-get install strace",
    }
    RcMistake = "KITE-C35" {
        title: "a file of pagekite.py's cannot be followed",
        cause: "A line of an rc file is malformed, contradicts another, or asks for what kite cannot do; or the file cannot be read.",
        subject: "the file and line that the message names",
        remedy: "Do what the message says. `kite import` writes the files anew as TOML.",
        then: Ends,
        example: "/etc/pagekite.d/20_frontends.rc:3: frontend: …\n  to mend it: …",
    }
    RcNote = "KITE-C36" {
        title: "an option of pagekite.py's has another meaning here, or none",
        cause: "kite read an rc file, and one of its options does not do what it does there. The rest of the file holds.",
        subject: "the file, line and option that the message names",
        remedy: "Remove the line if it is of no use any more; docs/parity.md says what kite does instead.",
        then: GoesOn,
        example: "/etc/pagekite.d/10_account.rc:7: …",
    }
    ImportUnwritten = "KITE-C37" {
        title: "the imported files were not written",
        cause: "A file of that name is there already, or the directory cannot be written to. Nothing was changed.",
        subject: "the file that the message names",
        remedy: "Move it away, or give --to another directory.",
        then: Ends,
        example: "backend.toml: it is there already, and nothing was written; move it away, or give --to another directory",
    }
    OutputFailed = "KITE-C38" {
        title: "the answer could not be written",
        cause: "Standard output is closed, or leads to a full disk.",
        subject: "standard output",
        remedy: "See where the output goes.",
        then: Ends,
        example: "cannot write: Broken pipe (os error 32); see where the output goes",
    }
    SandboxLacks = "KITE-C39" {
        title: "this machine cannot take all from kite that it could do without",
        cause: "The kernel lacks Landlock or a part of it, or seccomp. kite works as well; one wall less stands behind it.",
        subject: "what the message names",
        remedy: "Nothing must be done. A newer kernel has more (Landlock: Linux 5.13 and later, by and by).",
        then: GoesOn,
        example: "sandbox: this machine cannot do all: Landlock: …",
    }
    NoControlSocket = "KITE-C40" {
        title: "`kite status` and `kite reload` will not work",
        cause: "The socket in the state directory cannot be made: its path is too long, or not writable, or another kite has it: one that still runs, or that lets its visitors end after a signal. Everything else works.",
        subject: "the path that the message names",
        remedy: "Choose a shorter or writable --state-dir; start it again when the other is gone.",
        then: GoesOn,
        example: "`kite status` will not work: /very/long/…/backend.sock: …; choose a shorter or writable --state-dir",
    }
    AcceptFailed = "KITE-C41" {
        title: "a connection could not be taken",
        cause: "The system gives no more sockets: the limit of open files is reached, or memory is short.",
        subject: "this machine",
        remedy: "Raise the limit of open files (`ulimit -n`, LimitNOFILE= in a unit).",
        then: TriesAgain,
        example: "cannot accept a connection: …; trying again",
    }
    MotdUnreadable = "KITE-C42" {
        title: "the message of the day cannot be read",
        cause: "Its file is gone, or this user may not read it. The message stays as it was.",
        subject: "`motd_file`",
        remedy: "Write the message there, or remove the key and restart.",
        then: TriesAgain,
        example: "the message of the day stays as it was: /etc/kite/motd: there is no such file",
    }
    KiteOfOtherVersion = "KITE-C43" {
        title: "a kite in the book was written by another version of kite",
        cause: "A newer kite added it, and this one does not understand all that it may do, so it does not fly.",
        subject: "the kite that the message names",
        remedy: "Install the newer kite again, or remove the kite and add it anew.",
        then: GoesOn,
        example: "/var/lib/kite/kites.redb: bob.alice.example was written by another version of kite, and does not fly; …",
    }
    DemoFailed = "KITE-C44" {
        title: "the demo did not come to its end",
        cause: "One of its parts did not start or was too slow; with --via-tor, mostly because Tor could not be reached.",
        subject: "the part that the message names",
        remedy: "Run it again with --log debug to see why.",
        then: Ends,
        example: "the frontend did not publish its onion service within 180 s; run it again with --log debug to see why",
    }
    Broken = "KITE-C45" {
        title: "kite is broken, or this machine is",
        cause: "Something failed that never should: the runtime could not start, or a claim of kite's own turned out false.",
        subject: "kite itself",
        remedy: "Look at the machine's memory and limits; if they are in order, please report it.",
        then: Ends,
        example: "cannot start the runtime: …",
    }
    CaFile = "KITE-C46" {
        title: "the file with certificate authorities cannot be used",
        cause: "`ca_file` is not there, cannot be read, or holds no certificate.",
        subject: "the file that the message names",
        remedy: "Give a PEM file with the certificates of the authorities, or leave the key out.",
        then: Ends,
        example: "ca.pem: it holds no usable certificate; restore it from a backup, or move it away to begin with a new one",
    }
    SupervisorDeaf = "KITE-C47" {
        title: "the supervisor does not hear that kite is ready",
        cause: "NOTIFY_SOCKET names a socket that cannot be reached, so systemd waits in vain for a unit with Type=notify.",
        subject: "the variable NOTIFY_SOCKET, and the unit's `Type=`",
        remedy: "With systemd, use Type=exec; else unset the variable.",
        then: GoesOn,
        example: "NOTIFY_SOCKET is set to /run/systemd/notify, but nobody hears there that kite is ready: …; with systemd, use Type=exec",
    }
    BadLocalPlace = "KITE-C48" {
        title: "metrics or the status page cannot be there",
        cause: "Both are for this machine alone, and the place is no loopback address with a port, and no Unix socket by its absolute path.",
        subject: "`[metrics] listen` or `[web] listen`, or their flags",
        remedy: "Write 127.0.0.1 and a port, or unix: and an absolute path. To see the page from another machine, forward it with ssh -L.",
        then: Ends,
        example: "--web-listen: 0.0.0.0:7465 can be reached from other machines",
    }
    NoPage = "KITE-C49" {
        title: "this kite has no status page",
        cause: "It was started without one, which is the default.",
        subject: "the kite with this state directory",
        remedy: "Add --web-listen 127.0.0.1:7465, or listen under [web], and start it again.",
        then: Ends,
        example: "it has no status page; give it one with --web-listen 127.0.0.1:7465, or listen under [web], and start it again",
    }
    PlotsLost = "KITE-C50" {
        title: "the traffic of the last day cannot be kept",
        cause: "The file that the status page's plots are kept in is damaged, or cannot be read or written: a full disk, wrong permissions, a crash of the machine.",
        subject: "`backend-traffic` or `frontend-traffic` in the state directory",
        remedy: "Nothing, if it was damaged: it begins anew. Else check the disk's free space and the directory's permissions.",
        then: GoesOn,
        example: "/var/lib/kite/backend-traffic: it is torn, damaged, or of another version; the plots of the status page begin anew",
    }
    InvitationUnusable = "KITE-C51" {
        title: "this is no invitation that can be used",
        cause: "The line is damaged or of another version, was given as an argument, which others can read, or it is not said how to go on from it.",
        subject: "the invitation, which the message never repeats, or the flag that it names",
        remedy: "Run `kite backend join` and paste the whole line, or give it by --invitation-file; say --via-tor or --direct, and --origin or --node.",
        then: Ends,
        example: "this is no invitation that can be used: it is damaged; copy the whole line anew, from kite-invite1: to its last letter",
    }
    NotWritten = "KITE-C52" {
        title: "a configuration was not written",
        cause: "The questions were not answered to their end, or the directory cannot be written to.",
        subject: "the terminal, or the file that the message names",
        remedy: "Run the command again, as a user who may write there; what was there already is as it was.",
        then: Ends,
        example: "the input ended before all was answered; nothing was written",
    }
    CannotBecome = "KITE-C53" {
        title: "kite cannot become the user that it was told to",
        cause: "`user` (or --user) names nobody of this machine, it is not root who starts kite, or the state directory is somebody else's.",
        subject: "`user`, or --user, and the state directory",
        remedy: "Make the user (`useradd --system NAME`) and give it the state directory (`chown -R NAME: DIR`), start kite as root or as that user, or leave `user` out.",
        then: Ends,
        example: "user = kite: the state directory /var/lib/kite belongs to root; run: chown -R kite: /var/lib/kite",
    }
    FewFiles = "KITE-C54" {
        title: "fewer connections can be taken than kite is made for",
        cause: "The limit of open files of this process is low, and could not be raised. Each connection is one file. Those that are too many wait until others end.",
        subject: "this machine, or the unit that starts kite",
        remedy: "Raise the limit of open files (`ulimit -n`, LimitNOFILE= in a unit) to the number that the message names.",
        then: GoesOn,
        example: "this process may have 1024 files open, so it takes 768 connections at a time instead of 16384; …",
    }
    SocketUnwanted = "KITE-C55" {
        title: "a socket was handed over that the configuration does not name",
        cause: "systemd's socket unit listens on an address that `listen` has not. Whoever came there would wait for ever.",
        subject: "the address that the message names",
        remedy: "Add it to `listen` in the frontend's file, or take its ListenStream= out of the socket unit.",
        then: Ends,
        example: "[::]:8080 was handed over, and the configuration does not listen there; add it to `listen`, or take it out of the socket unit",
    }
    UpgradeFailed = "KITE-C56" {
        title: "no new frontend has taken the old one's place",
        cause: "The program on the disk could not be started, did not like its configuration, or was not ready in time.",
        subject: "the new process, whose own words are in the log",
        remedy: "Mend what it complains of and run `kite frontend upgrade` again. The old frontend goes on meanwhile.",
        then: GoesOn,
        example: "upgrade: the new kite ended (exit status: 2) before it was ready; the log has its own words, just before these; this one goes on",
    }
    StaysRoot = "KITE-C57" {
        title: "kite goes on as root",
        cause: "Root started it, nothing says whom to become, and the state directory is root's. Root's capabilities are given up; that files of root's are its own is not.",
        subject: "the frontend, and its state directory",
        remedy: "Make a user (`useradd --system kite`), give it the state directory (`chown -R kite: DIR`), and add --user kite, or user = \"kite\"; or write user = \"root\" if it must be.",
        then: GoesOn,
        example: "this frontend goes on as root, without root's capabilities; add --user NAME, and give NAME the state directory /var/lib/kite",
    }
    ScoresLost = "KITE-C58" {
        title: "the scores of frontends cannot be kept",
        cause: "The file that they are kept in is damaged, or cannot be read or written: a full disk, wrong permissions, a crash of the machine.",
        subject: "`backend-scores` in the state directory",
        remedy: "Nothing, if it was damaged: it begins anew. Else check the disk's free space and the directory's permissions.",
        then: GoesOn,
        example: "/var/lib/kite/backend-scores: it is torn, damaged, or of another version; the frontends' scores begin anew",
    }
}
