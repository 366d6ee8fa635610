"""Datasets: LeRobot, RMBench and packed ones, from files to batches of lanes; checks, statistics, a page to see."""
