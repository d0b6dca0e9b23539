//! The audio callbacks never allocate and never wait: counted by an allocator of this test alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use sa_device::audio::live::callback::{Alarm, Alarms};
use sa_device::audio::live::port::{MicPort, SpeakerPort};
use sa_device::audio::live::{Counters, FRAME};

/// Counts what the thread allocates or frees.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

#[test]
fn ten_thousand_callbacks_allocate_nothing() {
    let before = count();
    drop(black_box(Box::new([0u8; 100])));
    assert_eq!(count() - before, 2, "the counter counts");

    let counters = Arc::new(Counters::default());
    let (mut mic, mut frames) = MicPort::new(44_100, 2, &counters).expect("a usual rate");
    let (mut speaker, mut out) = SpeakerPort::new(48_000, 6, 512, &counters).expect("a usual rate");
    let alarms = Alarms::default();
    let (input, mut output) = (vec![1000i16; 2 * 441], vec![0i32; 6 * 512]);
    let mut frame = [0.0; FRAME];
    let (mut spent, mut taken, started) = (0, 0, Instant::now());
    for i in 0..10_000u32 {
        let before = count();
        mic.feed(started.elapsed(), &input, |x| f32::from(x) / 32_768.0);
        speaker.fill(started.elapsed(), &mut output, |x| (x * 2e9) as i32);
        // What an error callback does.
        alarms.raise(Alarm::Gone);
        spent += count() - before;
        // The program keeps up at first, and then is gone.
        while i < 5000 && frames.frame(&mut frame) {
            taken += 1;
            if out.room(frames.heard_until()) {
                out.play(&frame, frames.heard_until());
            }
        }
    }
    assert_eq!(spent, 0, "allocations in the callbacks");
    let counts = counters.read();
    assert!(taken > 4900 && counts.captured == 4_410_000 && counts.played == 5_120_000);
    assert!(counts.dropped > 1_000_000 && counts.invented > 1_000_000, "both rings were full and empty: {counts:?}");
}

/// The program hangs, in the middle of its work and holding its ends of the rings. The callbacks do not notice.
#[test]
fn a_stalled_program_blocks_no_callback() {
    let counters = Arc::new(Counters::default());
    let (mut mic, mut frames) = MicPort::new(48_000, 1, &counters).expect("a usual rate");
    let (mut speaker, mut out) = SpeakerPort::new(48_000, 1, 480, &counters).expect("a usual rate");
    let over = Arc::new(AtomicBool::new(false));
    let done = over.clone();
    let program = std::thread::spawn(move || {
        let mut frame = [0.0; FRAME];
        frames.frame(&mut frame);
        out.play(&frame, frames.heard_until());
        while !done.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        (frames, out)
    });
    let audio = std::thread::spawn(move || {
        let (input, mut output) = ([0.5f32; 480], [0.0f32; 480]);
        let started = Instant::now();
        // A hundred seconds of audio, while the program takes nothing.
        for _ in 0..10_000 {
            mic.feed(started.elapsed(), &input, |x| x);
            speaker.fill(started.elapsed(), &mut output, |x| x);
        }
        started.elapsed()
    });
    let took = audio.join().expect("the callbacks ran to their end");
    over.store(true, Relaxed);
    program.join().expect("the program ended");
    assert!(took < Duration::from_secs(20), "100 s of callbacks took {took:?}");
    let counts = counters.read();
    assert!(counts.dropped > 4_000_000 && counts.invented > 4_000_000, "{counts:?}");
}
