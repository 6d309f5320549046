//! Writes `blockd.8` and completions for three shells into a directory: `blockd-pages DIR`. Made from the definitions of the flags, for
//! packages; not installed.

use clap_complete::Shell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// What the flags do not say.
const SECTIONS: &str = r#".SH FILES
.TP
.I /etc/tern/blockd.toml
The configuration: every flag without its section is a key at the top, \-\-journal\-quota is quota under [journal].
.TP
.I /var/lib/tern
The state directory: key, catalogue, journals, images. Mode 0700; one daemon at a time.
.TP
.I /run/tern/blockd.sock
The socket of the admin API, for tern(1).
.SH SIGNALS
SIGTERM and SIGINT complete what was begun, and end the daemon.
.SH ENVIRONMENT
.TP
.B RUST_LOG
What is logged, as in "info,blockd=debug".
.TP
.BR NOTIFY_SOCKET ", " WATCHDOG_USEC ", " LISTEN_FDS
systemd's protocol: readiness, watchdog, and the sockets called admin and metrics.
.SH EXIT STATUS
0 after a signal; 2 for a wrong configuration, a taken address, or a state directory that cannot be used, with one line that names the cure.
.SH SEE ALSO
.BR tern (1)
"#;

fn main() -> anyhow::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else { anyhow::bail!("usage: blockd-pages DIR") };
    let mut command = blockd::config::command();
    let mut page = File::create(directory.join("blockd.8"))?;
    clap_mangen::Man::new(command.clone()).section("8").render(&mut page)?;
    page.write_all(SECTIONS.as_bytes())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "blockd", &directory)?;
    }
    Ok(())
}
