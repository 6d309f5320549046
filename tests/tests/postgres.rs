//! PostgreSQL on a replicated disk: the site dies under pgbench, and the database goes on at the other one.

/// Needs root: the disk is a loop device, and mounted.
mod privileged {
    use std::collections::HashSet;
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Stdio};
    use std::time::Duration;
    use tern_tests::{Disk, Pair, Postgres, postgres_programs, rounds};

    const CLIENTS: u32 = 4;
    /// More than one client commits until the site dies.
    const MOST_COMMITS: u32 = 100_000;

    /// The database while it runs at one site.
    struct Running {
        // In this order they end.
        postgres: Postgres,
        disk: Disk,
    }

    struct Cluster {
        programs: PathBuf,
        directory: tempfile::TempDir,
    }

    impl Cluster {
        /// Attaches the primary's disk, and starts the database there; a new one if there is none.
        fn start(&self, pair: &Pair) -> Option<Running> {
            let disk = Disk::attach(&pair.a, &self.directory.path().join(pair.a.name))?;
            let data = disk.path().join("data");
            if !data.exists() {
                Postgres::create(&self.programs, &data);
            }
            Some(Running { postgres: Postgres::start(&self.programs, &data, &self.directory.path().join("sockets")), disk })
        }
    }

    /// Clients of the database until it dies.
    struct Load {
        pgbench: Child,
        log: PathBuf,
        clients: Vec<Child>,
    }

    impl Load {
        /// pgbench's own transactions, and clients that say which number they saw committed.
        fn start(postgres: &Postgres, round: u32, directory: &Path) -> Self {
            let log = directory.join(format!("pgbench{round}"));
            let mut pgbench = postgres.command("pgbench");
            pgbench.args(["--no-vacuum", "--client", "4", "--time", "600", "--log"]).arg(format!("--log-prefix={}", log.display()));
            let pgbench = pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let clients = (0..CLIENTS).map(|client| {
                let mut psql = postgres.command("psql");
                psql.args(["-XAtq", "--set", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut psql = psql.spawn().unwrap();
                let mut input = psql.stdin.take().unwrap();
                std::thread::spawn(move || {
                    // Ends when psql does.
                    (0..MOST_COMMITS).try_for_each(|n| {
                        writeln!(input, "insert into ledger values ({round}, {client}, {n});\n\\echo {round} {client} {n}")
                    })
                });
                psql
            });
            Self { pgbench, log, clients: clients.collect() }
        }

        /// Once the database is gone: what the clients saw committed, and how many transactions pgbench did.
        fn end(mut self) -> (HashSet<String>, usize) {
            let mut seen = HashSet::new();
            for client in self.clients {
                let said = client.wait_with_output().unwrap().stdout;
                seen.extend(String::from_utf8(said).unwrap().lines().map(str::to_owned));
            }
            self.pgbench.wait().unwrap();
            let log = format!("{}.{}", self.log.display(), self.pgbench.id());
            (seen, fs::read_to_string(log).unwrap_or_default().lines().count())
        }
    }

    /// Nothing is corrupt, and no transaction is there in part.
    fn assert_sound(postgres: &Postgres) {
        postgres.run("pg_amcheck", &["--all", "--install-missing", "--heapallindexed", "--parent-check"]);
        let sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                    (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)";
        let sums = postgres.query(sums);
        let first = sums.split('|').next().unwrap();
        assert!(sums.split('|').all(|sum| sum == first), "{sums}");
    }

    /// `PG_FAILOVERS=20 PG_SECONDS=15 cargo test --release -p tern-tests --test postgres` is the long run.
    #[test]
    fn when_the_site_dies_under_pgbench_the_database_goes_on_at_the_other_one_with_all_that_the_mode_promised() {
        let Some(programs) = postgres_programs() else { return };
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let cluster = Cluster { programs, directory };
        let mut pair = Pair::start(320, "1s");
        let Some(mut running) = cluster.start(&pair) else { return };
        running.postgres.run("pgbench", &["--initialize", "--quiet", "--init-steps=dtgp"]);
        running.postgres.query("create table ledger (round int, client int, n int, primary key (round, client, n))");
        let mut done = 0;
        for round in 0..rounds("PG_FAILOVERS", 2) {
            let mode = ["barrier", "async", "sync"][round as usize % 3];
            pair.a.tern(&["replicate", "vm1", "--to", pair.b.name, "--rpo", "1s", "--mode", mode, "--ack-timeout", "2m"]);
            let load = Load::start(&running.postgres, round, cluster.directory.path());
            pair.a.wait_until("held", |seen| seen["mode"] == mode && seen["promise_held"] == true);
            std::thread::sleep(Duration::from_secs(rounds("PG_SECONDS", 3).into()));
            let status = pair.a.volume();
            pair.a.kill();
            drop(running);
            let (seen, transactions) = load.end();

            pair.b.tern(&["promote", "vm1", "--force"]);
            std::mem::swap(&mut pair.a, &mut pair.b);
            running = cluster.start(&pair).unwrap();
            assert_sound(&running.postgres);
            let kept: HashSet<_> =
                running.postgres.query("select round || ' ' || client || ' ' || n from ledger").lines().map(str::to_owned).collect();
            let lost = seen.difference(&kept).count();
            let history: usize = running.postgres.query("select count(*) from pgbench_history").parse().unwrap();
            println!("{mode}: {} commits seen, {lost} of them lost, and {} of {transactions} of pgbench's", seen.len(), history - done);
            if mode != "async" {
                assert_eq!(status["promise_held"], true, "{status}");
                assert!(!seen.is_empty() && lost == 0, "{mode}: {lost} of {} commits are lost", seen.len());
                assert!(history >= done + transactions, "{mode}: {history} transactions, of {done} and {transactions}");
            }
            done = history;

            pair.b.restart();
            pair.b.wait_until("stale", |volume| volume["role"] == "stale");
            pair.b.tern(&["resync", "vm1", "--discard-local", "--yes"]);
            pair.a.verify();
            pair.assert_no_panic();
        }
        drop(running.postgres);
        drop(running.disk);
    }
}
