//! What may be a site's name or address in what another site sends.

use std::net::SocketAddr;

/// Longest name of a site.
pub(super) const MAX_NAME_BYTES: usize = 64;

/// Most addresses of one site.
pub(super) const MAX_ADDRESSES: usize = 8;

/// Longest name of a host in the DNS.
const MAX_HOST_BYTES: usize = 253;

/// Letters, digits, `.`, `_` and `-`, a letter or digit first: names go into paths, labels and commands.
pub(super) fn is_site_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// `HOST:PORT`, the host an IP address (IPv6 in brackets) or a name.
pub(super) fn is_address(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let host_is_name =
        !host.is_empty() && host.len() <= MAX_HOST_BYTES && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    host_is_name && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        assert!(["osaka", "0", "a.b_c-d", &"x".repeat(64)].into_iter().all(is_site_name));
        assert!(!["", ".", "..", "-rf", "a/b", "a b", "é", &"x".repeat(65)].into_iter().any(is_site_name));
        assert!(["192.0.2.1:7447", "[2001:db8::1]:7447", "site-b.example:1"].into_iter().all(is_address));
        assert!(
            !["", "host", ":1", "host:0", "host:70000", "a b:1", "0.0.0.0:7447", "2001:db8::1", "[::1]", "a/b:1"]
                .into_iter()
                .any(is_address)
        );
    }
}
