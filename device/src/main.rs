//! `sa-agent`: a spoken question in, a spoken answer out.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
