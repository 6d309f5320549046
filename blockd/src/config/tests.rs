//! From arguments and files to a configuration, or to one line that helps.

use super::*;
use replicator::standby::ScrubPace;
use replicator::undo::Thin;
use std::io::Write;

fn with_args(args: &[&str]) -> Result<Config, ConfigError> {
    Config::from_args(["blockd"].iter().chain(args).map(OsString::from))
}

fn with_file(text: &str, args: &[&str]) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let config = with_args(&[&["--config", &path, "--site", "osaka"], args].concat());
    // The path is not the same twice.
    config.map_err(|error| match error {
        ConfigError::File { line, message, .. } => ConfigError::File { path: "FILE".into(), line, message },
        other => other,
    })
}

fn error_of(text: &str) -> String {
    let error = with_file(text, &[]).expect_err(text).to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn without_a_word_there_are_defaults() {
    let config = with_args(&["--site", "osaka"]).unwrap();
    assert_eq!(config.listen, "0.0.0.0:7447".parse().unwrap());
    assert_eq!((config.admin.to_str(), config.state_dir.to_str()), (Some(DEFAULT_ADMIN_PATH), Some(DEFAULT_STATE_DIR)));
    assert_eq!((config.metrics, config.log_format), (None, LogFormat::Text));
    assert_eq!(config.transport.bandwidth_delay_bytes(), 25_000_000);
    assert!(!config.danger_zone.plain_nbd_anywhere);
}

#[test]
fn a_file_sets_every_key_and_flags_win() {
    let file = r#"
        site = "from-file"
        state_dir = "/srv/tern"
        listen = "10.0.0.1:7000"
        admin = "/run/a.sock"
        metrics = "127.0.0.1:9447"
        log_format = "json"
        witness = true
        keep = "7d"
        keep_bytes = "200G"
        keep_thinning = "2h,1d"
        user = "root"
        on_event = "/bin/true"
        [sockets]
        owner = "root"
        group = 36
        mode = "0666"
        admin_owner = 0
        admin_group = "root"
        admin_mode = "600"
        [journal]
        quota = "2G"
        [proof]
        scrub = "1d"
        scrub_rate = "20MiB"
        verify = "0 3 * * 0"
        verify_rate = "30MiB"
        [spill]
        quota = "1GiB"
        memory = "8MiB"
        [delta]
        memory = "0"
        total = "128MiB"
        [transport]
        congestion = "bbr"
        bandwidth = "500Mbit"
        round_trip = "100ms"
        [nbd]
        max_connections = 7
        handshake_timeout = "3s"
        tls_certificate = "/etc/tern/cert.pem"
        tls_key = "/etc/tern/key.pem"
        tls_client_ca = "/etc/tern/ca.pem"
        tls_required = false
        [vhost_user]
        cpus = "0,2-3"
        poll_us = 50
        [sandbox]
        paths = ["/srv", "/dev"]
        [danger_zone]
        plain_nbd_anywhere = true
        no_sandbox = false
    "#;
    let config =
        with_file(file, &["--listen", "[::1]:7001", "--nbd-max-connections", "8", "--danger-zone-plain-nbd-anywhere=false"]).unwrap();
    let files =
        TlsFiles { certificate: "/etc/tern/cert.pem".into(), key: "/etc/tern/key.pem".into(), client_ca: Some("/etc/tern/ca.pem".into()) };
    let expected = Config {
        witness: true,
        on_event: Some("/bin/true".into()),
        site: "osaka".parse().unwrap(),
        state_dir: "/srv/tern".into(),
        listen: "[::1]:7001".parse().unwrap(),
        admin: "/run/a.sock".into(),
        metrics: Some("127.0.0.1:9447".parse().unwrap()),
        log_format: LogFormat::Json,
        export_access: SocketAccess { owner: Some(0), group: Some(36), mode: 0o666 },
        admin_access: SocketAccess { owner: Some(0), group: Some(0), mode: 0o600 },
        journal_quota: Size::gib(2),
        spill_quota: Size::gib(1),
        spill_memory: Size::mib(8),
        delta_memory: [Size::mib(0), Size::mib(128)],
        keep: Keep {
            span_ms: 7 * 86_400_000,
            max_bytes: 200 << 30,
            thin: [Thin { after_ms: 7_200_000, every_ms: 60_000 }, Thin { after_ms: 86_400_000, every_ms: 3_600_000 }],
            crowd: 100,
        },
        proof: ProofConfig {
            scrub: ScrubPace { every: Some(Duration::from_secs(86_400)), bytes_per_second: 20 << 20 },
            verify: Some("0 3 * * 0".into()),
            verify_bytes_per_second: 30 << 20,
        },
        transport: TransportConfig {
            congestion: Congestion::Bbr,
            bandwidth: "500Mbit".parse().unwrap(),
            round_trip: Duration::from_millis(100),
        },
        nbd: NbdConfig { max_connections: 8, handshake_timeout: Duration::from_secs(3), tls: Some((files, TlsPolicy::Offered)) },
        vhost_user: VhostUserConfig { cpus: vec![0, 2, 3], poll: Duration::from_micros(50) },
        danger_zone: DangerZone { plain_nbd_anywhere: false, no_sandbox: false },
        user: Some(RunAs { name: "root".into(), uid: 0, gid: 0, groups: sys::groups("root", 0).unwrap() }),
        sandbox_paths: Some(vec!["/srv".into(), "/dev".into()]),
    };
    assert_eq!(config, expected);
}

#[test]
fn every_flag_is_a_key_of_the_file() {
    let command = CommandLine::command();
    let flags: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).filter(|flag| *flag != "config").collect();
    assert!(flags.len() > 15, "{flags:?}");
    for flag in flags {
        let key = flag.replace('-', "_");
        let sections = ["sockets", "journal", "proof", "spill", "delta", "transport", "nbd", "vhost_user", "sandbox", "danger_zone"];
        let line = match sections.iter().find_map(|section| Some((section, key.strip_prefix(&format!("{section}_"))?))) {
            Some((section, key)) => format!("[{section}]\n{key} = {{}}"),
            None => format!("{key} = {{}}"),
        };
        let error = error_of(&line);
        assert!(!error.contains("unknown"), "--{flag}: {error}");
    }
}

#[test]
fn a_daemon_that_is_somebody_gives_its_sockets_to_nobody_else() {
    let error = error_of("user = \"nobody\"\n[sockets]\nowner = \"root\"");
    assert!(error.starts_with("sockets.owner: blockd runs as nobody") && error.contains("use the group"), "{error}");
    let error = error_of("user = \"no such user\"");
    assert!(error.starts_with("user: ") && error.contains("make the user"), "{error}");
}

#[test]
fn errors_of_the_file_name_the_line_the_key_and_the_cure() {
    for (text, expected) in [
        ("\nstate = 1", "FILE:2: unknown field `state`, expected one of `site`, "),
        ("[journal]\nqutoa = 1", "FILE:2: unknown field `qutoa`, expected `quota`"),
        ("[journal]\nquota = \"10GB\"", "FILE:2: quota: \"10GB\" is no size: write 10G, 512MiB or a number of bytes"),
        ("site = \"../x\"", "FILE:1: site: a name has 1 to 64 letters"),
        ("site = 1", "FILE:1: site: invalid type: integer `1`, expected a string"),
        ("listen = \"localhost:1\"", "FILE:1: listen: invalid socket address syntax"),
        ("log_format = \"xml\"", "FILE:1: log_format: unknown variant `xml`, expected `text` or `json`"),
        ("[sockets]\nmode = 660", "FILE:2: mode: invalid type: integer `660`, expected a string"),
        ("[sockets]\nowner = []", "FILE:2: owner: a name or a number"),
        ("site = ", "FILE:1: site: "),
        ("= 1", "FILE:1: "),
    ] {
        let error = error_of(text);
        assert!(error.starts_with(expected), "{text:?} gave {error:?}, not {expected:?}");
    }
}

#[test]
fn values_that_make_no_sense_name_the_key_and_the_cure() {
    for (text, expected) in [
        ("[sockets]\nmode = \"rw\"", "sockets.mode: \"rw\" is no mode: write it in octal, as in \"0660\""),
        ("[sockets]\nmode = \"1777\"", "sockets.mode: "),
        ("[sockets]\nadmin_mode = \"0666\"", "sockets.admin_mode: everybody on this host could control the daemon"),
        ("[sockets]\nowner = \"no-such-user\"", "sockets.owner: there is no user \"no-such-user\": make it, or give its number"),
        ("[spill]\nquota = 4096", "spill.quota: 4KiB is too small to work: give 16MiB or more"),
        ("[nbd]\nmax_connections = 0", "nbd.max_connections: 0 is out of range: give 1 to 65536"),
        ("[nbd]\nhandshake_timeout = \"1ms\"", "nbd.handshake_timeout: 1ms is out of range: give 100ms to 10m"),
        ("[nbd]\ntls_certificate = \"/x\"", "nbd.tls_key: missing: give the key of nbd.tls_certificate"),
        ("[nbd]\ntls_required = true", "nbd.tls_required: of no use without a certificate: set nbd.tls_certificate, too"),
        ("[nbd]\ntls_client_ca = \"/x\"", "nbd.tls_client_ca: of no use without a certificate"),
        ("[proof]\nscrub_rate = \"9\"", "proof.scrub_rate: "),
        ("[proof]\nverify = \"nightly\"", "proof.verify: \"nightly\": neither a span such as 15m nor cron syntax"),
        ("on_event = \"/bin/true -x\"", "on_event: \"/bin/true -x\" is no file: give the path of a program, without arguments"),
        ("state_dir = \"\"", "state_dir: \"\" is no path"),
    ] {
        let error = error_of(text);
        assert!(error.starts_with(expected), "{text:?} gave {error:?}, not {expected:?}");
    }
    let long = format!("admin = \"/{}\"", "x".repeat(200));
    assert!(error_of(&long).contains("107 bytes or less"));
}

#[test]
fn a_missing_file_and_a_wrong_flag_are_told_apart() {
    let missing = with_args(&["--config", "/nonexistent/tern.toml"]).unwrap_err().to_string();
    assert!(missing.starts_with("--config /nonexistent/tern.toml: No such file"), "{missing}");
    assert!(matches!(with_args(&["--frobnicate"]), Err(ConfigError::CommandLine(error)) if error.exit_code() == 2));
    assert!(matches!(with_args(&["--help"]), Err(ConfigError::CommandLine(error)) if error.exit_code() == 0));
}

#[test]
fn relative_paths_become_absolute() {
    let config = with_args(&["--site", "osaka", "--state-dir", "x", "--admin", "a.sock"]).unwrap();
    assert!(config.state_dir.is_absolute() && config.admin.is_absolute());
}
