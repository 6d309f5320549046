//! The loop that moves packets: one thread, epoll, a timer of nanosecond precision. Every decision about a packet is
//! [`crate::wan`]'s.

use std::{
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::epoll,
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create, timerfd_settime,
    },
};

use crate::{
    command::{Command, Direction},
    control::{MAX_CLIENTS, Served, Server},
    counters::Report,
    error::{Error, Result},
    namespace::Device,
    sys,
    wan::{Reply, Wan},
};

/// Packets read from one device before the others get their turn.
const BATCH_PACKETS: usize = 64;
/// The timer sleeps at least this long: at high rates several packets share a wake-up, for a jitter that no WAN would show.
const TIMER_GRAIN: Duration = Duration::from_micros(25);
/// No IP packet is larger.
const MAX_PACKET_BYTES: usize = 65_536;
const EVENTS: usize = 32;

const TUN_A: u64 = 0;
const TUN_B: u64 = 1;
const TIMER: u64 = 2;
const SIGNALS: u64 = 3;
const STDIN: u64 = 4;
const LISTENER: u64 = 5;
const FIRST_CLIENT: u64 = 16;
const _: () = assert!(LISTENER < FIRST_CLIENT && MAX_CLIENTS < u32::MAX as usize);

/// What ends the relay beside SIGINT and SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndsWith {
    /// Nothing else.
    Signal,
    /// The end of standard input too: whoever started the emulator is gone.
    Stdin,
}

/// SIGINT and SIGTERM, which end [`Relay::run`] instead of the process.
#[derive(Debug)]
pub struct Termination(OwnedFd);

impl Termination {
    /// Blocks both signals from here on; one that comes before the relay runs ends it as soon as it does.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no more descriptors.
    pub fn block() -> Result<Self> {
        sys::termination_signals().map(Self).map_err(Error::io("signalfd"))
    }
}

/// Has this thread run before every ordinary one. Lateness of the relay is delay that nobody asked for: on two cores with a
/// load of nine, 20 to 30 ms at worst at 85 Mbit/s without this, 1 to 2 ms with it (a better nice value did not help).
///
/// # Errors
/// The system's refusal, for instance in a container.
pub fn run_before_others() -> io::Result<()> {
    sys::set_round_robin()
}

/// The running emulator.
#[derive(Debug)]
pub struct Relay {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to; `None` if it fired or was never set.
    timer_at: Option<Duration>,
    _termination: Termination,
    control: Option<Server>,
    wan: Wan<Box<[u8]>>,
    a: Port,
    b: Port,
    started: Duration,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Port {
    device: Device,
    refused_packets: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl Relay {
    /// Joins two devices by a WAN.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no more descriptors, or if standard input cannot be watched (it is a file).
    pub fn new(
        a: Device,
        b: Device,
        wan: Wan<Box<[u8]>>,
        control: Option<Server>,
        termination: Termination,
        ends_with: EndsWith,
    ) -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("timerfd")(errno.into()))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::io("epoll")(errno.into()))?;
        watch(&epoll, &a.tun, TUN_A)?;
        watch(&epoll, &b.tun, TUN_B)?;
        watch(&epoll, &termination.0, SIGNALS)?;
        // Edge-triggered, so that nobody has to read it.
        watch_with(&epoll, &timer, TIMER, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        if ends_with == EndsWith::Stdin {
            watch(&epoll, io::stdin(), STDIN)?;
        }
        if let Some(server) = &control {
            watch(&epoll, server.listener(), LISTENER)?;
        }
        let port = |device| Port { device, refused_packets: 0 };
        let buffer = vec![0; MAX_PACKET_BYTES].into_boxed_slice();
        Ok(Self { epoll, timer, timer_at: None, _termination: termination, control, wan, a: port(a), b: port(b), started: clock(), buffer })
    }

    /// Relays until it is told to end. Returns the last counters.
    ///
    /// # Errors
    /// [`Error::Io`] if a device fails, for instance because it was deleted.
    pub fn run(mut self) -> Result<Report> {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        loop {
            let ready = match epoll::wait(&self.epoll, &mut events, None) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::io("epoll")(errno.into())),
            };
            let mut next = Next::GoOn;
            for event in &*ready {
                if self.handle_event(event.data.u64())? == Next::End {
                    next = Next::End;
                }
            }
            if next == Next::End {
                return Ok(self.report());
            }
            self.transmit(Direction::AToB);
            self.transmit(Direction::BToA);
            self.set_timer()?;
        }
    }

    fn handle_event(&mut self, token: u64) -> Result<Next> {
        match token {
            TUN_A => self.receive(Direction::AToB)?,
            TUN_B => self.receive(Direction::BToA)?,
            TIMER => self.timer_at = None,
            SIGNALS => return Ok(Next::End),
            STDIN => return Ok(read_stdin()),
            LISTENER => self.accept()?,
            client => self.serve(usize::try_from(client.saturating_sub(FIRST_CLIENT)).unwrap_or(usize::MAX)),
        }
        Ok(Next::GoOn)
    }

    fn receive(&mut self, direction: Direction) -> Result<()> {
        let now = self.now();
        let port = match direction {
            Direction::AToB => &self.a,
            Direction::BToA => &self.b,
        };
        for _ in 0..BATCH_PACKETS {
            match rustix::io::read(&port.device.tun, &mut *self.buffer) {
                Ok(len) => self.wan.link(direction).handle_packet(now, len as u64, Box::from(&self.buffer[..len])),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("reading from a TUN device")(errno.into())),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, direction: Direction) {
        let now = self.now();
        let port = match direction {
            Direction::AToB => &mut self.b,
            Direction::BToA => &mut self.a,
        };
        let link = self.wan.link(direction);
        while let Some(packet) = link.poll_transmit(now) {
            if rustix::io::write(&port.device.tun, &packet).is_err() {
                port.refused_packets += 1;
            }
        }
    }

    fn set_timer(&mut self) -> Result<()> {
        let Some(at) = self.wan.poll_timeout() else { return Ok(()) };
        if self.timer_at.is_some_and(|set| set <= at) {
            // It fires early at worst, and is set again then.
            return Ok(());
        }
        let at = at.max(self.now() + TIMER_GRAIN);
        self.timer_at = Some(at);
        let value = self.started + at;
        let it_value = Timespec { tv_sec: value.as_secs().cast_signed(), tv_nsec: value.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec).map_err(|errno| Error::io("timerfd")(errno.into()))?;
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let Some((slot, stream)) = self.control.as_mut().and_then(Server::accept) else { return Ok(()) };
        watch(&self.epoll, stream, FIRST_CLIENT + slot as u64)
    }

    fn serve(&mut self, slot: usize) {
        let Some(mut control) = self.control.take() else { return };
        // A client that goes closes its descriptor, which leaves the epoll set by that.
        let (Served::Open | Served::Closed) = control.serve(slot, |line| self.answer(line));
        self.control = Some(control);
    }

    fn answer(&mut self, line: &str) -> String {
        match line.parse::<Command>() {
            Err(error) => format!("error: {error}"),
            Ok(command) => match self.wan.handle_command(self.now(), command) {
                Reply::Done => "ok".into(),
                Reply::Report(_) => serde_json::to_string(&self.report()).unwrap_or_else(|error| format!("error: {error}")),
            },
        }
    }

    fn report(&mut self) -> Report {
        let mut report = self.wan.report(self.now());
        report.a_to_b.dropped_device_packets = self.a.device.dropped_packets().unwrap_or(0);
        report.b_to_a.dropped_device_packets = self.b.device.dropped_packets().unwrap_or(0);
        report.a_to_b.refused_device_packets = self.b.refused_packets;
        report.b_to_a.refused_device_packets = self.a.refused_packets;
        report
    }

    fn now(&self) -> Duration {
        clock().saturating_sub(self.started)
    }
}

fn clock() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> Result<()> {
    watch_with(epoll, fd, token, epoll::EventFlags::IN)
}

fn watch_with(epoll: &OwnedFd, fd: impl AsFd, token: u64, flags: epoll::EventFlags) -> Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), flags).map_err(|errno| Error::io("epoll: watching")(errno.into()))
}

fn read_stdin() -> Next {
    match io::stdin().read(&mut [0; 64]) {
        Ok(1..) => Next::GoOn,
        Ok(0) | Err(_) => Next::End,
    }
}
