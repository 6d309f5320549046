//! Draws the model: a line for each volume, and the selected one in full.

use super::{
    model::{Model, Trend},
    strips::{bar, curve},
};
use crate::verbs::status::{cuts, going_back, on_trial};
use blockd_api::{Bandwidth, Role, State, Status, Usage, VolumeStatus, human_bytes, human_rate, human_seconds};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, BorderType, Cell, Paragraph, Row, Table, TableState, Wrap},
};

/// Height of the selected volume's part.
const DETAIL_LINES: u16 = 12;
/// Below this height the list alone is drawn.
const MIN_LINES_WITH_DETAIL: u16 = 20;
/// Width of bars and curves in the list.
const STRIP_COLUMNS: u16 = 12;

const DIM: Style = Style::new().fg(Color::DarkGray);

/// Draws the whole screen.
pub fn draw(frame: &mut Frame, model: &Model) {
    let detail = if frame.area().height >= MIN_LINES_WITH_DETAIL && !model.volumes().is_empty() { DETAIL_LINES } else { 0 };
    let parts = [Constraint::Length(1), Constraint::Min(3), Constraint::Length(detail), Constraint::Length(1)];
    let [head, list, below, foot] = Layout::vertical(parts).areas(frame.area());
    draw_head(frame, head, model);
    draw_list(frame, list, model);
    if detail > 0
        && let Some(volume) = model.volumes().get(model.selected())
    {
        draw_detail(frame, below, volume, model.trend(&volume.name));
    }
    draw_foot(frame, foot, model);
}

fn draw_head(frame: &mut Frame, area: Rect, model: &Model) {
    let Some(status) = model.status() else { return };
    let site = Span::styled(format!(" tern · {} ", status.site), Style::new().fg(Color::Black).bg(Color::Cyan).bold());
    let mut spans = vec![site, Span::from(format!("  {}", summary(status)))];
    for (name, usage) in [("journal", status.journal), ("spill", status.spill)] {
        if usage.quota_bytes > 0 {
            spans.push(Span::styled(format!("   {name} "), DIM));
            spans.push(Span::styled(quota(usage), Style::new().fg(quota_color(usage))));
        }
    }
    frame.render_widget(Line::from(spans), area);
}

fn summary(status: &Status) -> String {
    let count = |wanted: fn(&VolumeStatus) -> bool| status.volumes.iter().filter(|volume| wanted(volume)).count();
    let (all, well) = (status.volumes.len(), count(|volume| volume.role != Role::Standalone && volume.state == State::InSync));
    let replicated = count(|volume| volume.role != Role::Standalone);
    format!("{all} volume{}, {well} of {replicated} in sync", if all == 1 { "" } else { "s" })
}

fn quota(usage: Usage) -> String {
    format!("{} of {}", human_bytes(usage.used_bytes), human_bytes(usage.quota_bytes))
}

fn quota_color(usage: Usage) -> Color {
    match usage.used_bytes as f64 / usage.quota_bytes.max(1) as f64 {
        used if used >= 0.95 => Color::Red,
        used if used >= 0.75 => Color::Yellow,
        _ => Color::Reset,
    }
}

fn draw_list(frame: &mut Frame, area: Rect, model: &Model) {
    let block = Block::bordered().border_type(BorderType::Rounded).border_style(DIM);
    if model.volumes().is_empty() {
        let hint = "no volumes yet: make one with `tern volume create NAME --size 10G`";
        frame.render_widget(Paragraph::new(hint).block(block).centered(), area);
        return;
    }
    let names = model.volumes().iter().map(|volume| volume.name.len() as u16).max().unwrap_or(0).clamp(6, 24);
    let widths = [
        Constraint::Length(names),
        Constraint::Length(10),
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(17),
        Constraint::Length(STRIP_COLUMNS + 9),
        Constraint::Length(STRIP_COLUMNS + 13),
        Constraint::Length(9),
    ];
    let heads = ["VOLUME", "ROLE", "STATE", "MODE", "RPO / TARGET", "BACKLOG", "LINK", "EVACUATE"];
    let rows = model.volumes().iter().map(|volume| row(volume, model.trend(&volume.name)));
    let dimmed = if model.trouble().is_some() { DIM } else { Style::new() };
    let table = Table::new(rows, widths)
        .header(Row::new(heads).style(DIM.add_modifier(Modifier::BOLD)))
        .style(dimmed)
        .row_highlight_style(Style::new().bg(Color::Indexed(236)))
        .highlight_symbol("▶ ")
        .block(block);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(model.selected()));
}

fn row<'a>(volume: &'a VolumeStatus, trend: Option<&Trend>) -> Row<'a> {
    let name = Cell::from(volume.name.as_str()).bold();
    let role = Cell::from(volume.role.as_str()).style(Style::new().fg(role_color(volume.role)));
    if volume.role == Role::Standalone {
        return Row::new([name, role, Cell::from("not replicated").style(DIM)]);
    }
    let state = Cell::from(format!("● {}", volume.state)).style(Style::new().fg(state_color(volume.state)));
    let evacuation = volume.evacuation_seconds.map_or_else(|| "-".to_owned(), human_seconds);
    Row::new([
        name,
        role,
        state,
        Cell::from(volume.mode.as_str()),
        rpo(volume),
        backlog(volume, trend),
        link(volume, trend),
        evacuation.into(),
    ])
}

fn rpo(volume: &VolumeStatus) -> Cell<'static> {
    let now = volume.rpo_seconds.map_or_else(|| "-".to_owned(), human_seconds);
    let text = volume.rpo_target_seconds.map_or_else(|| now.clone(), |target| format!("{now} / {}", human_seconds(target)));
    Cell::from(text).style(Style::new().fg(rpo_color(volume)))
}

fn rpo_color(volume: &VolumeStatus) -> Color {
    match (volume.rpo_seconds, volume.rpo_target_seconds) {
        (Some(now), Some(target)) if now > target => Color::Red,
        (Some(now), Some(target)) if now > 0.8 * target => Color::Yellow,
        (Some(_), Some(_)) => Color::Green,
        _ => Color::Reset,
    }
}

fn backlog(volume: &VolumeStatus, trend: Option<&Trend>) -> Cell<'static> {
    let peak = trend.map_or(0, |trend| trend.peak_backlog_bytes).max(1);
    let strip = bar(volume.backlog_bytes as f64 / peak as f64, STRIP_COLUMNS.into());
    let color = if volume.backlog_bytes == 0 { Color::DarkGray } else { Color::Blue };
    Line::from(vec![
        Span::styled(strip, Style::new().fg(color).bg(Color::Indexed(235))),
        Span::from(format!(" {}", human_bytes(volume.backlog_bytes))),
    ])
    .into()
}

fn link(volume: &VolumeStatus, trend: Option<&Trend>) -> Cell<'static> {
    let Some(trend) = trend else { return Cell::from("") };
    let rates: Vec<_> = trend.rates.iter().copied().collect();
    let strip = curve(&rates, trend.full_rate(volume), STRIP_COLUMNS.into());
    Line::from(vec![Span::styled(strip, Style::new().fg(Color::Cyan)), Span::from(format!(" {}", human_rate(trend.rate())))]).into()
}

fn draw_detail(frame: &mut Frame, area: Rect, volume: &VolumeStatus, trend: Option<&Trend>) {
    let title = Line::from(vec![Span::from(" "), Span::from(volume.name.to_string()).bold().cyan(), Span::from(" ")]);
    let block = Block::bordered().border_type(BorderType::Rounded).border_style(DIM).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).spacing(2).areas(inner);
    frame.render_widget(Paragraph::new(facts(volume)), left);
    let [curve_area, replicas] = Layout::vertical([Constraint::Length(5), Constraint::Min(0)]).areas(right);
    draw_curve(frame, curve_area, volume, trend);
    frame.render_widget(Paragraph::new(replica_lines(volume)).wrap(Wrap { trim: true }), replicas);
}

fn facts(volume: &VolumeStatus) -> Vec<Line<'static>> {
    let pair = |name: &str, value: String| Line::from(vec![Span::styled(format!("{name:<12}"), DIM), Span::from(value)]);
    let attached = volume.attached.iter().map(|front_end| front_end.as_str()).collect::<Vec<_>>().join(", ");
    let share = if volume.changed_bytes == 0 {
        String::new()
    } else {
        format!(" = {:.0} %", 100.0 * volume.wire_bytes_sent as f64 / volume.changed_bytes as f64)
    };
    let held = if volume.promise_held { Span::from("held").green() } else { Span::from("not held").red() };
    let (zero, duplicate, delta, full) = (volume.zero_blocks, volume.duplicate_blocks, volume.delta_blocks, volume.full_blocks);
    let mut lines = vec![
        pair("size", human_bytes(volume.size_bytes)),
        pair("attached", if attached.is_empty() { "nobody".to_owned() } else { attached }),
        pair("generation", format!("{}, epoch {} open, {} committed", volume.generation, volume.epoch_open, volume.epoch_committed)),
        Line::from(vec![Span::styled(format!("{:<12}", "promise"), DIM), held]),
        pair("changed", format!("{}, sent {}{share}", human_bytes(volume.changed_bytes), human_bytes(volume.wire_bytes_sent))),
        pair("received", human_bytes(volume.wire_bytes_received)),
        pair("blocks", format!("{zero} zero, {duplicate} duplicate, {delta} delta, {full} full")),
        pair("to send", format!("{} in {} dirty blocks", human_bytes(volume.backlog_bytes), volume.dirty_blocks)),
    ];
    if let Some(cuts) = cuts(volume) {
        lines.push(pair("cuts", cuts));
    }
    if let Some(said) = on_trial(volume) {
        lines.push(pair("trial", said));
    }
    if let Some(said) = going_back(volume) {
        lines.push(pair("going back", said));
    }
    if let Some(error) = &volume.last_error {
        lines.push(Line::from(vec![Span::styled(format!("{:<12}", "last error"), DIM), Span::from(error.clone()).red()]));
    }
    lines
}

/// Link use as a curve of the part's full width, four lines high.
fn draw_curve(frame: &mut Frame, area: Rect, volume: &VolumeStatus, trend: Option<&Trend>) {
    let Some(trend) = trend else { return };
    let now = volume.bandwidth_bits_per_second.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {}", human_rate(limit as f64)));
    let limit = if matches!(volume.bandwidth, Some(Bandwidth::By(_))) { format!("{now} now") } else { now };
    let heading = Line::from(vec![
        Span::styled("link use ", DIM),
        Span::from(human_rate(trend.rate())).bold(),
        Span::styled(format!("  {limit}"), DIM),
    ]);
    let [heading_area, curve_area] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(heading, heading_area);
    let shown = trend.rates.len().min(curve_area.width.into());
    // A sparkline draws from the left: keep the newest at the right edge.
    let [_, drawn] = Layout::horizontal([Constraint::Min(0), Constraint::Length(shown as u16)]).areas(curve_area);
    let newest = trend.rates.iter().skip(trend.rates.len() - shown).map(|rate| *rate as u64);
    let sparkline = ratatui::widgets::Sparkline::default().data(newest.collect::<Vec<_>>()).max((trend.full_rate(volume) as u64).max(1));
    frame.render_widget(sparkline.style(Style::new().fg(Color::Cyan)), drawn);
}

fn replica_lines(volume: &VolumeStatus) -> Vec<Line<'static>> {
    let line = |replica: &blockd_api::ReplicaStatus| {
        let rpo = replica.rpo_seconds.map_or_else(|| "-".to_owned(), human_seconds);
        Line::from(vec![
            Span::styled("→ ", DIM),
            Span::from(replica.site.to_string()).bold(),
            Span::styled(format!(" ● {}", replica.state), Style::new().fg(state_color(replica.state))),
            Span::from(format!(
                " {} epoch {}, {rpo} behind, {} to go",
                replica.mode,
                replica.epoch_committed,
                human_bytes(replica.backlog_bytes)
            )),
        ])
    };
    volume.replicas.iter().map(line).collect()
}

fn draw_foot(frame: &mut Frame, area: Rect, model: &Model) {
    let line = match model.trouble() {
        Some(trouble) => Line::from(format!(" {trouble}; trying again ")).style(Style::new().fg(Color::White).bg(Color::Red)),
        None => Line::from(vec![" q".bold(), Span::styled(" quit  ", DIM), "↑↓".bold(), Span::styled(" select", DIM)]),
    };
    frame.render_widget(line, area);
}

fn role_color(role: Role) -> Color {
    match role {
        Role::Primary => Color::Cyan,
        Role::Standby => Color::Blue,
        Role::Standalone => Color::Reset,
        Role::Stale => Color::Red,
    }
}

fn state_color(state: State) -> Color {
    match state {
        State::InSync => Color::Green,
        State::InitialSync | State::CatchingUp | State::Promoting | State::Trial => Color::Yellow,
        State::NotConverging | State::Degraded | State::Disconnected | State::Suspended => Color::LightRed,
        State::Fenced | State::SplitBrain | State::Error => Color::Red,
    }
}
