"""The tasks by name."""

from __future__ import annotations

from prompt_tasks.articles import ARTICLES
from prompt_tasks.invoices import INVOICES
from prompt_tasks.orders import ORDERS
from prompt_tasks.permits import PERMITS
from prompt_tasks.planted import PlantedTask
from prompt_tasks.tickets import TICKETS

ALL: dict[str, PlantedTask] = {task.name: task for task in (INVOICES, ORDERS, TICKETS, ARTICLES, PERMITS)}
