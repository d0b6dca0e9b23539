//! The tools as the model calls them: built-ins, programs, what goes wrong, and what outlives a restart.

use std::time::Instant;

use super::*;

fn tools(text: &str) -> (tempfile::TempDir, Tools) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("tools.toml");
    std::fs::write(&path, text).expect("writable");
    let tools = Tools::load(&path).expect("well formed");
    (dir, tools)
}

#[test]
fn built_ins_answer() {
    let mut tools = Tools::built_in();
    assert_eq!(tools.call("calc twenty three plus forty five"), Outcome::ok("sixty eight"));
    assert_eq!(tools.call("timer status"), Outcome::ok("none"));
    assert_eq!(tools.call("timer set five minutes"), Outcome::ok("ok"));
    assert!(tools.call("timer status").words.ends_with("left"));
    for name in ["time", "date"] {
        let outcome = tools.call(name);
        assert!(outcome.problem.is_none() && outcome.words.split(' ').count() >= 2, "{outcome:?}");
    }
    assert_eq!(tools.call("dance").words, "unknown tool");
    assert_eq!(tools.call("").words, "unknown tool");
    assert_eq!(tools.call("time paris").words, "not available");
    assert_eq!(tools.call("volume set forty"), Outcome::ok("ok"));
    assert_eq!(tools.volume().percent(), 40);
    assert_eq!((tools.call("repeat").words, tools.call("stop").words), ("none".into(), "none".into()));
    tools.said("okay the light is on");
    assert_eq!((tools.call("repeat").words.as_str(), tools.last_reply()), ("okay the light is on", "okay the light is on"));
}

#[test]
fn a_correction_replaces_and_anything_else_adds() {
    let mut tools = Tools::built_in();
    let now = Now::read();
    let mut ask = |question: &str, call: &str| {
        tools.heard(question);
        tools.call_at(call, now).words
    };
    assert_eq!(ask("timer for ten minutes", "timer set ten minutes"), "ok");
    assert_eq!(ask("timer for one hour", "timer set one hour"), "ok");
    assert_eq!(ask("make it two hours", "timer set two hours"), "ok");
    assert_eq!(ask("how long is left", "timer status"), "ten minutes left");
    assert_eq!(ask("cancel the timer", "timer cancel"), "ok");
    assert_eq!(ask("cancel the timer", "timer cancel"), "ok");
    assert_eq!(ask("cancel the timer", "timer cancel"), "none", "two were running, not three");
}

#[test]
fn timers_and_the_volume_outlive_the_program() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let now = Now { wall: 1e9, monotonic: 50.0 };
    let kept = |now: Now| {
        let mut tools = Tools::built_in();
        assert_eq!(tools.keep_state(dir.path(), now).expect("ours"), None);
        tools
    };
    let mut tools = kept(now);
    for call in ["timer set five minutes", "timer set one minute", "volume set thirty"] {
        assert_eq!(tools.call_at(call, now), Outcome::ok("ok"));
    }
    drop(tools);
    // Started anew, two minutes later, on a machine that was started anew.
    let later = Now { wall: now.wall + 120.0, monotonic: 4.0 };
    let mut tools = kept(later);
    assert_eq!(tools.volume().percent(), 30);
    let (due, problem) = tools.due(later);
    assert_eq!((due.len(), due[0].words.as_str(), due[0].late_s, problem), (1, "one minute", 60.0, None));
    assert!(tools.ringing());
    assert_eq!(tools.call_at("timer status", later).words, "three minutes left");
    assert_eq!(tools.call_at("stop", later), Outcome::ok("ok"));
    drop(tools);
    let mut tools = kept(later);
    assert_eq!(tools.due(later).0, [], "it was stopped");
    // A state that cannot be written is told, and the timer runs all the same.
    drop(std::fs::remove_dir_all(dir.path()));
    let outcome = tools.call_at("timer set one hour", later);
    assert_eq!(outcome.words, "ok");
    assert!(outcome.problem.is_some_and(|problem| problem.contains("will be lost")));
}

#[test]
fn a_replay_gives_the_results_of_the_log() {
    let report = |call: &str, result: &str| CallReport { call: call.into(), result: result.into(), problem: None };
    let mut tools = Tools::recorded(vec![report("time", "noon"), report("time", "one"), report("date", "monday")]);
    assert_eq!(tools.call("time"), Outcome::ok("noon"));
    assert_eq!(tools.call("time"), Outcome::ok("one"));
    assert_eq!(tools.call("calc one plus one").words, "not available");
    assert_eq!(tools.call("date").words, "not available");
}

#[test]
fn a_tool_may_have_several_forms_and_allows_nothing_else() {
    let (_dir, mut tools) = tools(
        r#"
        [[tool.light]]
        call = "set {room} {state}"
        program = ["/bin/echo", "{room}", "goes", "{state}"]
        values.room = ["kitchen", "living room"]
        values.state = { on = "ON", off = "OFF" }
        [[tool.light]]
        call = "dim {room} {level}"
        program = ["/usr/bin/printf", "%s.", "{level}", "{all}"]
        values.room = ["kitchen"]
        values.level = { from = 0, to = 100 }
        "#,
    );
    assert_eq!(tools.call("light set living room on"), Outcome::ok("living room goes on"));
    assert_eq!(tools.call("light dim kitchen twenty five"), Outcome::ok("twenty five dim kitchen twenty five"));
    for refused in ["light set garage on", "light set kitchen", "light dim kitchen two hundred", "light", "light set kitchen on now"] {
        let outcome = tools.call(refused);
        assert_eq!(outcome.words, "not available", "{refused}");
        assert!(outcome.problem.is_some_and(|problem| problem.contains("`set {room} {state}`")), "{refused}");
    }
}

#[test]
fn programs_get_arguments_and_nothing_else() {
    let (_dir, mut tools) = tools(
        r#"
        [tool.weather]
        program = ["/bin/sh", "-c", "echo \"$1: 21.5 °C; ${SECRET:-no secrets}\"", "sh", "{all}"]
        [tool.each]
        program = ["/bin/echo", "{words}"]
        [tool.second]
        program = ["/bin/echo", "<{2}>", "x{3}y"]
        [tool.quiet]
        program = ["/bin/true"]
        [tool.light]
        answer = "OK"
        [tool.calc]
        answer = "seven"
        "#,
    );
    assert_eq!(tools.call("weather san jose"), Outcome::ok("san jose twenty one point five degrees c no secrets"));
    assert_eq!(tools.call("each a $(reboot)"), Outcome::ok("a reboot"));
    assert_eq!(tools.call("second a b"), Outcome::ok("b xy"));
    assert_eq!(tools.call("quiet"), Outcome::ok("ok"));
    assert_eq!(tools.call("light set kitchen on"), Outcome::ok("ok"));
    assert_eq!(tools.call("calc one plus one"), Outcome::ok("seven"));
}

#[test]
fn what_goes_wrong_is_told_and_bounded() {
    let (_dir, mut tools) = tools(
        r#"
        [tool.absent]
        program = ["/no/such/program"]
        [tool.fails]
        program = ["/bin/sh", "-c", "echo not this; echo the cable is out >&2; exit 3"]
        [tool.hangs]
        program = ["/bin/sh", "-c", "sleep 30 & sleep 30"]
        seconds = 0.2
        [tool.floods]
        program = ["/bin/sh", "-c", "while :; do echo noise; done"]
        output_bytes = 100
        [tool.garbage]
        program = ["/usr/bin/printf", "\\377\\376\\001\\002"]
        [tool.noise]
        program = ["/usr/bin/printf", "light\\377on"]
        [tool.signs]
        program = ["/usr/bin/printf", "\\001 ... --"]
        "#,
    );
    let started = Instant::now();
    let outcome = tools.call("absent");
    assert_eq!(outcome.words, "not available");
    assert!(outcome.problem.expect("told").contains("/no/such/program"));
    let outcome = tools.call("fails");
    assert_eq!(outcome.words, "failed");
    let problem = outcome.problem.expect("told");
    assert!(problem.contains("3") && problem.contains("the cable is out"), "{problem}");
    assert_eq!(tools.call("hangs").words, "timed out");
    let outcome = tools.call("floods");
    assert_eq!(outcome.words, "failed");
    assert!(outcome.problem.expect("told").contains("100 bytes"));
    for name in ["garbage", "noise", "signs"] {
        assert_eq!(tools.call(name).words, "no answer", "{name}");
    }
    assert!(started.elapsed().as_secs() < 10, "nothing hangs");
}
