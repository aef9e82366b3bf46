//! The etcd that a fleet has its book in.

use super::file::EtcdTable;
use super::*;
use crate::fleet::etcd::endpoint::EndpointError;
use crate::fleet::etcd::{Endpoint, Login, Settings};

/// Most endpoints of one etcd.
const MAX_ENDPOINTS: usize = 16;
/// What keys begin with, unless the operator says otherwise.
const PREFIX: &str = "kite";
/// Longest such beginning, in letters.
const MAX_PREFIX: usize = 128;

/// A fleet's etcd, and what this member writes of itself there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// How etcd is spoken with.
    pub settings: Settings,
    /// Where the other members reach this one.
    pub address: SocketAddr,
    /// Where backends reach it, if they are to be told.
    pub public: Option<FrontendAddr>,
}

pub(super) fn etcd(source: &Source, table: EtcdTable, listen: SocketAddr) -> Result<EtcdConfig> {
    let at = |key: &str| source.at(format_args!("fleet.etcd.{key}"));
    let wrong = |code, key: &str, problem: String, remedy: &str| {
        Err(ConfigError::new(code, at(key), problem, remedy))
    };
    if table.endpoints.is_empty() || table.endpoints.len() > MAX_ENDPOINTS {
        let problem = format!("these are {} endpoints", table.endpoints.len());
        let remedy =
            "write one for each etcd, 16 at most: endpoints = [\"https://etcd-1.example:2379\"]";
        return wrong(Code::OutOfRange, "endpoints", problem, remedy);
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (i, text) in table.endpoints.iter().enumerate() {
        let endpoint = text.parse().map_err(|e: EndpointError| {
            // Not shown: there may be a password in it.
            let place = at(&format!("endpoints[{i}]"));
            let remedy = "copy it from etcd's --advertise-client-urls; `user` and `password_file` are keys of their own";
            ConfigError::new(Code::BadValue, place, e, remedy)
        })?;
        endpoints.push(endpoint);
    }
    let ca = table.ca.map(|path| source.path(&path));
    if ca.is_none() && endpoints.iter().any(|e| !e.clear) {
        return wrong(
            Code::Contradiction,
            "ca",
            "there is an https endpoint, and no authority to believe".into(),
            "name the file that etcd has as --trusted-ca-file",
        );
    }
    let identity = match (table.cert, table.key) {
        (Some(cert), Some(key)) => Some((source.path(&cert), source.path(&key))),
        (None, None) => None,
        (cert, _) => {
            let missing = if cert.is_some() { "key" } else { "cert" };
            let problem = format!("`cert` and `key` belong together, and there is no `{missing}`");
            return wrong(
                Code::Contradiction,
                missing,
                problem,
                "name both files, or neither",
            );
        }
    };
    let login = match (table.user, table.password_file) {
        (Some(user), Some(file)) => {
            let file = source.path(&file);
            let password = read_secret(&at("password_file"), &file)?;
            Some(Login { user, password })
        }
        (None, None) => None,
        (user, _) => {
            let missing = if user.is_some() {
                "password_file"
            } else {
                "user"
            };
            let problem =
                format!("`user` and `password_file` belong together, and there is no `{missing}`");
            return wrong(
                Code::Contradiction,
                missing,
                problem,
                "write both, or neither",
            );
        }
    };
    let prefix = table.prefix.unwrap_or_else(|| PREFIX.to_owned());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
    let parts = prefix.split('/').all(|part| !part.is_empty());
    if prefix.len() > MAX_PREFIX || !parts || !prefix.bytes().all(plain) {
        let problem = format!("'{prefix}' is no beginning for keys");
        let remedy = "write letters, digits, - . _ and single slashes between them, such as kite or fleets/kite";
        return wrong(Code::BadValue, "prefix", problem, remedy);
    }
    let address = match table.address {
        Some(text) => fleet::address(&at("address"), &text)?,
        None => listen,
    };
    if address.ip().is_unspecified() || address.port() == 0 {
        return wrong(
            Code::BadValue,
            "address",
            format!("other members cannot reach {address}"),
            "write here where they reach `listen` under [fleet]: 10.0.0.2:4430 or [fd00::2]:4430",
        );
    }
    let public = table.public.map(|text| fleet::public(&at("public"), &text));
    Ok(EtcdConfig {
        settings: Settings {
            endpoints,
            ca,
            identity,
            login,
            prefix,
        },
        address,
        public: public.transpose()?,
    })
}
