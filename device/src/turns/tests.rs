//! What a conversation needs, example by example, and what must hold whatever happens.

use super::*;

const TICK: Duration = Duration::from_millis(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A machine, its clock and what it did.
struct Bench {
    turns: Turns,
    now: Time,
    done: Vec<Action>,
}

impl Bench {
    fn new(settings: TurnSettings) -> Self {
        Self { turns: Turns::new(settings, ms(5000)), now: ms(5000), done: Vec::new() }
    }

    fn input(&mut self, input: Input) -> &mut Self {
        self.done.extend(self.turns.step(self.now, input));
        self
    }

    /// Ticks go by.
    fn wait(&mut self, time: u64) -> &mut Self {
        for _ in 0..time / 10 {
            self.now += TICK;
            self.input(Input::Tick);
        }
        self
    }

    fn voice(&mut self, time: u64) -> &mut Self {
        self.input(Input::SpeechStarted { since: self.now }).wait(time);
        self.input(Input::SpeechEnded { at: self.now })
    }

    fn took(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    /// Asks, and is at the beginning of the answer.
    fn speaking(&mut self) -> &mut Self {
        self.voice(1000).wait(1000).input(Input::Read { understood: true }).input(Input::PlaybackStarted);
        assert_eq!(self.turns.state(), State::Speaking);
        self.done.clear();
        self
    }
}

#[test]
fn a_turn_goes_round() {
    let mut bench = Bench::new(TurnSettings::default());
    assert_eq!(bench.voice(1000).took(), [Action::Begin { since: ms(4700) }]);
    assert_eq!(bench.turns.state(), State::Listening);
    assert_eq!(bench.wait(690).took(), []);
    assert_eq!(bench.wait(10).took(), [Action::Answer], "half way between 400 and 1000 ms");
    bench.input(Input::Read { understood: true }).wait(200).input(Input::PlaybackStarted);
    assert_eq!(bench.turns.state(), State::Speaking);
    bench.wait(2000).input(Input::PlaybackFinished);
    assert_eq!((bench.turns.state(), bench.took()), (State::Idle, vec![]));
    assert_eq!(bench.wait(300_000).took(), [Action::Forget]);
    assert_eq!(bench.wait(600_000).took(), [], "once");
}

#[test]
fn the_pause_that_ends_a_question_follows_the_probability() {
    for (p, expected) in [(1.0, 400), (0.0, 1000), (0.75, 550), (f32::NAN, 1000), (7.0, 400)] {
        let mut bench = Bench::new(TurnSettings::default());
        bench.voice(1000).input(Input::Complete(p)).took();
        bench.wait(expected - 10);
        assert_eq!(bench.took(), [], "{p}");
        assert_eq!(bench.wait(10).took(), [Action::Answer], "{p}");
    }
}

/// A television behind the user: the question is over when the model hears no new word, and what goes on neither takes it back nor interrupts.
#[test]
fn a_voice_without_a_new_word_ends_the_question() {
    for (p, expected) in [(1.0, 1300), (0.5, 1600)] {
        let mut bench = Bench::new(TurnSettings::default());
        bench.input(Input::SpeechStarted { since: bench.now }).wait(2000).took();
        for unclear in [0.2, 0.0, f32::NAN] {
            assert_eq!(bench.input(Input::NoNewWord { lasted: ms(9000), complete: unclear }).took(), [], "it is not understood");
        }
        assert_eq!(bench.input(Input::NoNewWord { lasted: ms(expected - 10), complete: p }).took(), [], "{p}");
        assert_eq!(bench.input(Input::NoNewWord { lasted: ms(expected), complete: p }).took(), [Action::Answer], "{p}");
        bench.wait(1000).input(Input::Read { understood: true }).input(Input::PlaybackStarted).wait(5000);
        assert_eq!((bench.turns.state(), bench.took()), (State::Speaking, vec![]));
        let now = bench.now;
        bench.input(Input::SpeechEnded { at: now }).input(Input::SpeechStarted { since: now }).wait(1000);
        assert_eq!(bench.took(), [], "nor what begins anew");
        let now = bench.now;
        bench.input(Input::PlaybackFinished).input(Input::SpeechEnded { at: now }).speaking();
        bench.input(Input::SpeechStarted { since: bench.now }).wait(20);
        assert_eq!(bench.took(), [Action::Pause], "the next answer is interrupted as ever");
    }
    // In a pause the silence counts, and with the key only the key.
    let mut bench = Bench::new(TurnSettings::default());
    let wordless = Input::NoNewWord { lasted: ms(5000), complete: 1.0 };
    bench.voice(1000).wait(300).input(wordless);
    assert_eq!(bench.turns.state(), State::Listening);
    let since = bench.now;
    bench.input(Input::KeyDown).input(Input::SpeechStarted { since }).wait(2000).input(wordless);
    assert_eq!(bench.turns.state(), State::Listening);
}

#[test]
fn a_user_who_goes_on_takes_the_question_back() {
    let mut bench = Bench::new(TurnSettings::default());
    bench.voice(1000).wait(700).took();
    assert_eq!(bench.turns.state(), State::Thinking);
    bench.input(Input::SpeechStarted { since: bench.now }).wait(100);
    assert_eq!(bench.took(), [Action::Abandon, Action::Begin { since: ms(4700) }], "from its beginning");
    bench.input(Input::SpeechEnded { at: bench.now }).wait(700);
    assert_eq!(bench.took(), [Action::Answer]);
    // When the question has been read tools may be at work: then it is a new one.
    let since = bench.now;
    bench.input(Input::Read { understood: true }).input(Input::SpeechStarted { since });
    let new = bench.now - ms(300);
    assert_eq!(bench.wait(100).took(), [Action::Abandon, Action::Begin { since: new }]);
}

#[test]
fn noises_and_silence_are_not_questions() {
    let mut bench = Bench::new(TurnSettings::default());
    bench.voice(100).wait(700);
    assert!(matches!(bench.took()[..], [Action::Begin { .. }, Action::Abandon]));
    bench.input(Input::KeyDown).wait(9000);
    assert_eq!(bench.turns.state(), State::Listening, "as long as the key is held");
    assert!(matches!(bench.took()[..], [Action::Begin { .. }]));
    assert_eq!(bench.input(Input::KeyUp).took(), [Action::Answer]);
    assert_eq!(bench.input(Input::Read { understood: false }).turns.state(), State::Idle);
}

#[test]
fn a_cough_pauses_and_a_voice_cuts() {
    let mut bench = Bench::new(TurnSettings::default());
    bench.speaking().voice(10).wait(500);
    assert_eq!(bench.took(), [], "too short even to pause");
    bench.voice(200);
    assert_eq!((bench.turns.state(), bench.took()), (State::Interrupted, vec![Action::Pause]));
    assert_eq!(bench.wait(400).took(), [Action::Resume], "a cough");
    assert_eq!(bench.turns.state(), State::Speaking);
    let begin = bench.now - Interrupted::default().before;
    bench.input(Input::SpeechStarted { since: bench.now }).wait(30);
    assert_eq!(bench.took(), [Action::Pause]);
    assert_eq!(bench.wait(310).took(), [Action::Cut, Action::Begin { since: begin }]);
    assert_eq!(bench.turns.state(), State::Listening);
}

/// What may be the agent's own voice holds the answer, and is a question only when it turns out to be the user's.
#[test]
fn a_suspicion_pauses_and_no_more() {
    let mut bench = Bench::new(TurnSettings::default());
    let since = bench.speaking().now;
    bench.input(Input::SpeechSuspected { since }).wait(300);
    assert_eq!(bench.took(), [Action::Pause]);
    bench.input(Input::SpeechEnded { at: bench.now }).wait(400);
    assert_eq!((bench.turns.state(), bench.took()), (State::Speaking, vec![Action::Resume]));
    let since = bench.now;
    bench.input(Input::SpeechSuspected { since }).wait(600);
    assert_eq!((bench.turns.state(), bench.took()), (State::Interrupted, vec![Action::Pause]));
    bench.input(Input::SpeechStarted { since: bench.now });
    assert_eq!(bench.took(), [Action::Cut, Action::Begin { since: since - Interrupted::default().before }], "the user's since it began");
    // Never sure: the answer goes on when the state ends, and is not paused again for the same.
    let mut bench = Bench::new(TurnSettings::default());
    let since = bench.speaking().now;
    bench.input(Input::SpeechSuspected { since }).wait(3030);
    assert_eq!(bench.took(), [Action::Pause, Action::Resume]);
    assert_eq!(bench.wait(20_000).took(), []);
    // The next one counts again, and so does this one as soon as it is sure.
    let mut sure = Bench { turns: bench.turns.clone(), now: bench.now, done: vec![] };
    sure.input(Input::SpeechStarted { since }).wait(10);
    assert!(matches!(sure.took()[..], [Action::Pause, Action::Cut, Action::Begin { .. }]));
    let at = bench.now;
    bench.input(Input::SpeechEnded { at }).input(Input::SpeechSuspected { since: at }).wait(30);
    assert_eq!(bench.took(), [Action::Pause]);
    // Alone it begins nothing.
    let mut bench = Bench::new(TurnSettings::default());
    bench.input(Input::SpeechSuspected { since: bench.now }).wait(1000);
    assert_eq!((bench.turns.state(), bench.took()), (State::Idle, vec![]));
}

/// Coughs that pause an answer over and over do not make it longer than it may be.
#[test]
fn pauses_belong_to_the_answer() {
    let mut bench = Bench::new(TurnSettings::default());
    bench.speaking();
    let began = bench.now;
    while bench.turns.state() != State::Idle {
        bench.voice(200).wait(500);
        assert!(bench.now - began < ms(62_000), "it goes on for ever");
    }
    assert_eq!((bench.done.last(), bench.turns.timeouts().speaking), (Some(&Action::Cut), 1));
}

/// What nobody asked for waits until nobody has the word, and whoever speaks takes it.
#[test]
fn something_to_say_goes_like_an_answer() {
    let mut bench = Bench::new(TurnSettings::default());
    bench.input(Input::Say).wait(300);
    assert_eq!((bench.turns.state(), bench.took()), (State::Thinking, vec![]));
    bench.input(Input::PlaybackStarted).wait(500);
    assert_eq!((bench.turns.state(), bench.took()), (State::Speaking, vec![]));
    assert_eq!(bench.input(Input::Say).input(Input::PlaybackFinished).took(), []);
    assert_eq!(bench.turns.state(), State::Idle, "once");
    let since = bench.input(Input::Say).now;
    bench.input(Input::SpeechStarted { since }).wait(100);
    assert_eq!(bench.took(), [Action::Abandon, Action::Begin { since: since - Idle::default().before }]);
    assert_eq!(bench.input(Input::Say).turns.state(), State::Listening);
}

#[test]
fn the_stop_word_and_errors_end_everything() {
    for input in [Input::StopWord, Input::Failed] {
        let mut bench = Bench::new(TurnSettings::default());
        assert_eq!(bench.speaking().input(input).took(), [Action::Cut]);
        assert_eq!(bench.turns.state(), State::Idle);
        bench.voice(1000).wait(700).took();
        assert_eq!(bench.input(input).took(), [Action::Abandon]);
        assert_eq!(bench.input(Input::PlaybackStarted).took(), [Action::Silence], "too late");
    }
    // The voice that said it begins no question.
    let mut bench = Bench::new(TurnSettings::default());
    bench.speaking();
    let since = bench.now;
    bench.input(Input::SpeechStarted { since }).input(Input::StopWord).wait(500);
    assert_eq!((bench.turns.state(), bench.took()), (State::Idle, vec![Action::Cut]));
    let now = bench.now;
    bench.input(Input::SpeechEnded { at: now }).voice(20);
    assert_eq!(bench.turns.state(), State::Listening);
}

#[test]
fn with_push_to_talk_only_the_key_counts() {
    let mut bench = Bench::new(TurnSettings { push_to_talk: true, ..TurnSettings::default() });
    assert_eq!(bench.voice(2000).wait(2000).took(), []);
    bench.input(Input::KeyDown).voice(500).wait(3000);
    assert_eq!(bench.took(), [Action::Begin { since: ms(9000) }]);
    assert_eq!(bench.input(Input::KeyUp).took(), [Action::Answer]);
    bench.input(Input::Read { understood: true }).input(Input::PlaybackStarted).voice(1000).wait(1000);
    assert_eq!((bench.turns.state(), bench.took()), (State::Speaking, vec![]));
    assert!(matches!(bench.input(Input::KeyDown).took()[..], [Action::Cut, Action::Begin { .. }]));
}

/// xorshift64*: the same events on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// What follows from the actions: the world that the machine steers.
#[derive(Debug, Default)]
struct World {
    /// A question is open, or an answer is being made.
    work: bool,
    asked: bool,
    audible: bool,
    paused: bool,
    /// Since when the user and the agent both speak.
    both: Option<Time>,
    user: bool,
}

impl World {
    fn follow(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Begin { .. } => {
                    assert!(!self.audible && !self.paused, "a question begins only in silence");
                    (self.work, self.asked) = (true, false);
                }
                Action::Answer => {
                    assert!(self.work && !self.asked, "what is answered was asked");
                    self.asked = true;
                }
                Action::Abandon => {
                    assert!(self.work, "what is thrown away was there");
                    self.work = false;
                }
                Action::Pause => {
                    assert!(self.audible);
                    (self.audible, self.paused) = (false, true);
                }
                Action::Resume => {
                    assert!(self.paused);
                    (self.audible, self.paused) = (true, false);
                }
                Action::Cut => (self.audible, self.paused, self.work) = (false, false, false),
                Action::Silence => assert!(!self.audible && !self.paused, "nothing that is wanted is silenced"),
                Action::Forget => assert!(!self.work && !self.audible),
            }
        }
    }
}

fn random_input(random: &mut Random, now: Time) -> Input {
    let ago = ms(random.below(300));
    match random.below(15) {
        0..2 => Input::SpeechStarted { since: now.saturating_sub(ago) },
        2 => Input::SpeechSuspected { since: now.saturating_sub(ago) },
        3..6 => Input::SpeechEnded { at: now.saturating_sub(ago) },
        6 if random.below(2) > 0 => Input::Complete(random.below(100) as f32 / 99.0),
        6 => Input::NoNewWord { lasted: 5 * ago, complete: random.below(100) as f32 / 99.0 },
        7 => Input::Read { understood: random.below(3) > 0 },
        8 | 9 => Input::PlaybackStarted,
        10 => Input::PlaybackFinished,
        11 => [Input::Failed, Input::StopWord][random.below(2) as usize],
        12 => Input::KeyDown,
        13 => Input::KeyUp,
        _ => Input::Say,
    }
}

/// The longest that a state may last, a tick included.
fn longest(settings: &TurnSettings, state: State) -> Duration {
    TICK + match state {
        State::Idle => Duration::MAX - TICK,
        State::Listening => settings.listening.timeout,
        State::Thinking => settings.thinking.timeout,
        State::Speaking => settings.speaking.timeout,
        State::Interrupted => settings.interrupted.timeout,
    }
}

/// The longest from a question's end until the agent listens again, whatever it does meanwhile.
fn longest_answer(settings: &TurnSettings) -> Duration {
    settings.thinking.timeout + settings.speaking.timeout + settings.interrupted.timeout + 3 * TICK
}

/// Any events in any order, sparse and dense, with keys and voices that never end: no state lasts longer than its timeout and no answer
/// longer than all of them, the agent never speaks over a user for longer than the limit, actions fit together, and when all is quiet it
/// listens again.
#[test]
fn whatever_happens_it_listens_again() {
    let mut visited = [0u32; 5];
    for seed in 1..=400u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut settings = TurnSettings { push_to_talk: seed % 8 == 0, ..TurnSettings::default() };
        settings.speaking.barge_in = seed % 5 != 0;
        // A key that stays down, a voice that does not end.
        let (key_sticks, voice_stays) = (seed % 7 == 0, seed % 11 == 0);
        let limit = settings.speaking.pause_after + TICK;
        let mut turns = Turns::new(settings.clone(), Duration::ZERO);
        let mut world = World::default();
        let (mut now, mut entered, mut state) = (Duration::ZERO, Duration::ZERO, State::Idle);
        // Since when there has been an answer, or something to say.
        let mut answering = None;
        // From one event in 30 ms to one in ten seconds.
        let rarity = [3, 30, 200, 1000][(seed % 4) as usize];
        for step in 0..6000 {
            now += TICK;
            let input = match if random.below(rarity) == 0 { random_input(&mut random, now) } else { Input::Tick } {
                Input::KeyUp if key_sticks => Input::Tick,
                Input::SpeechEnded { .. } if voice_stays => Input::Tick,
                input => input,
            };
            match input {
                Input::SpeechStarted { .. } => world.user = true,
                Input::SpeechEnded { .. } => world.user = false,
                _ => {}
            }
            let before = turns.state();
            let actions = turns.step(now, input);
            if input == Input::PlaybackStarted && before == State::Thinking {
                (world.audible, world.work) = (true, false);
            }
            if input == Input::PlaybackFinished && matches!(before, State::Speaking | State::Interrupted | State::Thinking) {
                (world.audible, world.paused, world.work) = (false, false, false);
            }
            if matches!(input, Input::Read { understood: false }) && before == State::Thinking {
                world.work = false;
            }
            if input == Input::Say && before == State::Idle {
                (world.work, world.asked) = (true, true);
            }
            world.follow(&actions);
            visited[turns.state() as usize] += 1;
            if turns.state() != state {
                (state, entered) = (turns.state(), now);
            }
            let answers = !matches!(state, State::Idle | State::Listening);
            answering = answers.then(|| answering.filter(|_| !actions.contains(&Action::Answer)).unwrap_or(now));
            let answer = answering.map_or(Duration::ZERO, |since| now - since);
            assert!(answer <= longest_answer(&settings), "seed {seed}, step {step}: {answer:?} until it listens again");
            assert!(now - entered <= longest(&settings, state), "seed {seed}, step {step}: {state:?} since {entered:?}");
            assert_eq!(world.audible, state == State::Speaking, "seed {seed}, step {step}");
            assert_eq!(world.paused, state == State::Interrupted, "seed {seed}, step {step}");
            world.both = (world.user && world.audible).then(|| world.both.unwrap_or(now));
            let both = world.both.map_or(Duration::ZERO, |since| now - since);
            let interrupts = settings.speaking.barge_in && !settings.push_to_talk && !turns.among_others;
            assert!(!interrupts || both <= limit, "seed {seed}, step {step}: both speak for {both:?}");
        }
        // Quiet: nobody speaks, no key (but for what never ends), no answer comes.
        if !key_sticks {
            turns.step(now, Input::KeyUp);
        }
        if !voice_stays {
            turns.step(now, Input::SpeechEnded { at: now });
        }
        let quiet = now;
        while turns.state() != State::Idle {
            now += TICK;
            turns.step(now, Input::Tick);
            assert!(now - quiet < ms(130_000), "seed {seed}: stuck in {:?}", turns.state());
        }
        turns.step(now, Input::KeyUp);
        turns.step(now, Input::SpeechEnded { at: now });
        let opened = if settings.push_to_talk { Input::KeyDown } else { Input::SpeechStarted { since: now } };
        assert!(matches!(turns.step(now, opened)[..], [Action::Begin { .. }]), "seed {seed}: it listens again");
    }
    assert!(visited.iter().all(|count| *count > 1000), "every state was tried: {visited:?}");
}
