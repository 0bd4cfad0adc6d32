# Every target sets up what it needs; Python 3.11 or newer and make are all that must be there.
# Variables: EXCHANGE SYMBOLS TIMEFRAME SINCE UNTIL HOME_DIR ARGS, as in `make backfill EXCHANGE=binance SYMBOLS=BTC/USDT SINCE=2024-01-01`.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_VERSION := >=0.8,<1
# Each file of tests on one of a few processes: one more than there are processors, since many wait for a server or a disk.
# In the order of tests/conftest.py, which begins with the long ones, so that none of them is left for the end.
PARALLEL := -n $(shell expr $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1) --dist loadfile --no-loadscope-reorder
# What is tested in a second time zone: what makes texts of instants, or instants of texts, and what keeps them. That nothing
# else asks for the machine's zone is seen by the lint rules DTZ. The models count minutes, servers have a zone of their own.
ZONED := tests/unit/market tests/unit/store tests/unit/serve tests/unit/exchange/test_ccxt_errors.py \
	tests/unit/exchange/test_ccxt_client.py tests/unit/exchange/test_history_now.py tests/unit/test_client.py tests/contract \
	-k "not postgresql and not timescaledb and not hybrid and not redis and not rabbitmq and not model and not _kill"

EXCHANGE ?= simulated
SYMBOLS ?= BTC/USDT,ETH/USDT
TIMEFRAME ?= 1m
STRATEGY ?= sma_cross
HOME_DIR ?= data
# Of `make soak`: kills of the ingest process and of the database, seconds that the database is away and trades a second
# meanwhile, seconds that a storm lasts.
KILLS ?= 100
DATABASE_KILLS ?= 20
AWAY ?= 120
RATE ?= 20000
STORM ?= 3600

export CHANDLERY_HOME ?= $(HOME_DIR)

.DEFAULT_GOAL := help
.PHONY: help setup up demo simulate backfill ingest serve archive backtest check doctor test test-fast soak lint format bench clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment .venv with chandlery in it

$(READY): pyproject.toml uv.lock bootstrap.sh
	@sh bootstrap.sh $(VENV) "uv$(UV_VERSION)"
	@touch $@

up: $(READY) ## exchange, backfill, live ingest, archive and HTTP service, until Ctrl-C (EXCHANGE=binance for the real one)
	@$(BIN)/chandlery up --exchange $(EXCHANGE) --symbols "$(SYMBOLS)" --timeframe $(TIMEFRAME) $(if $(SINCE),--since $(SINCE)) $(ARGS)

demo: $(READY) ## the same, bounded: ends by itself with a summary
	@CHANDLERY_HOME=$(CHANDLERY_HOME)/demo $(BIN)/chandlery up --demo $(ARGS)

simulate: $(READY) ## the simulated exchange alone, on port 9900
	@$(BIN)/chandlery simulate $(ARGS)

backfill: $(READY) ## fill the gaps: EXCHANGE= SYMBOLS= TIMEFRAME= SINCE= [UNTIL=]
	@$(BIN)/chandlery backfill --exchange $(EXCHANGE) --symbols "$(SYMBOLS)" --timeframe $(TIMEFRAME) $(if $(SINCE),--since $(SINCE)) $(if $(UNTIL),--until $(UNTIL)) $(ARGS)

ingest: $(READY) ## keep series current over live streams: EXCHANGE= SYMBOLS= TIMEFRAME= (ARGS="--channels candles,trades")
	@$(BIN)/chandlery ingest --exchange $(EXCHANGE) --symbols "$(SYMBOLS)" --timeframe $(TIMEFRAME) $(ARGS)

serve: $(READY) ## answer HTTP requests over the home
	@$(BIN)/chandlery serve $(ARGS)

archive: $(READY) ## bring the Parquet archive up to the store
	@$(BIN)/chandlery archive $(ARGS)

backtest: $(READY) ## run STRATEGY over the archive: EXCHANGE= SYMBOLS= TIMEFRAME= [SINCE= UNTIL=]
	@$(BIN)/chandlery backtest $(STRATEGY) --exchange $(EXCHANGE) --symbols "$(SYMBOLS)" --timeframe $(TIMEFRAME) $(if $(SINCE),--since $(SINCE)) $(if $(UNTIL),--until $(UNTIL)) $(ARGS)

check: $(READY) ## prove what is stored; lists what is wrong or missing
	@$(BIN)/chandlery check $(ARGS)

doctor: $(READY) ## what is configured, what is reachable
	@$(BIN)/chandlery doctor $(ARGS)

test: lint ## everything: lint, types, import rules, all tests, and again in another time zone (ARGS= goes to pytest)
	$(BIN)/pytest $(if $(ARGS),,$(PARALLEL)) $(ARGS)
	$(if $(ARGS),,TZ=Asia/Seoul $(BIN)/pytest -q $(PARALLEL) $(ZONED))

test-fast: $(READY) ## unit tests only
	$(BIN)/pytest tests/unit $(ARGS)

soak: $(READY) ## the crash tests for hours, with figures: KILLS= DATABASE_KILLS= AWAY= (seconds) RATE= (trades a second) STORM= (seconds)
	CHANDLERY_TEST_KILLS=$(KILLS) CHANDLERY_TEST_DATABASE_KILLS=$(DATABASE_KILLS) CHANDLERY_TEST_AWAY_SECONDS=$(AWAY) \
	CHANDLERY_TEST_AWAY_RATE=$(RATE) CHANDLERY_TEST_STORM_SECONDS=$(STORM) $(BIN)/pytest -o log_cli=true --log-cli-level=INFO \
	tests/crash/test_ingest_kill.py tests/crash/test_database_kill.py tests/acceptance/test_database_away.py \
	tests/acceptance/test_storm.py $(ARGS)

lint: $(READY) ## style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## every benchmark beside its baseline; results in bench/results
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --quiet --frozen --inexact --extra postgres --group bench
	$(BIN)/python -m bench $(ARGS)

clean: ## remove the virtual environment and caches; the data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
